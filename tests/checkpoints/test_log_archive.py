"""A run whose machine is lost goes on elsewhere with its logs: every epoch once, and under the same id."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import numpy as np
import pytest

from prdp.checkpoints.checkpoint import load_checkpoint
from prdp.checkpoints.log_archive import (
    LOGS_FILE,
    STEP_GAP,
    evaluation_names,
    has_evaluation,
    pack_evaluation,
    pack_logs,
    restore_evaluation,
    restore_logs,
)
from prdp.checkpoints.mirror import fetch_latest, push, restore_fetched
from prdp.checkpoints.saving import save_checkpoint
from prdp.cli import main
from prdp.prompts.usage import check_usage, read_prompt_log
from prdp.support.storage import write_atomically
from prdp.tracking.evaluations import list_evaluations, save_evaluation
from prdp.tracking.jsonl import choose_run_id, read_metrics
from prdp.tracking.status_file import read_status, start_status
from prdp.tracking.wandb_tracker import read_step, step_file
from prdp.types import PromptBatch


def evaluate(run_dir: Path, epoch: int, score: float = 0.5) -> None:
    pictures = np.full((1, 4, 4, 3), epoch, np.uint8)
    prompts = PromptBatch(0, 0, ("a red dot",), ({},))
    save_evaluation(run_dir, epoch, prompts, 1, np.array([score]), {}, pictures)


def write_lines(run_dir: Path, epochs: Sequence[int]) -> None:
    start_status(run_dir, status="running", run_id="abc123", epoch=epochs[-1])
    write_atomically(run_dir / "metrics.jsonl", "".join(f'{{"epoch": {n}}}\n' for n in epochs).encode())
    source = {"rows": 9, "pass_length": 9, "every_prompt_once": True}
    lines = [json.dumps(source), *(json.dumps({"epoch": n, "indices": [n]}) for n in epochs)]
    write_atomically(run_dir / "prompts.jsonl", ("\n".join(lines) + "\n").encode())


def save(run_dir: Path, epoch: int, keep: int = 2) -> Path:
    state, logs = {"evaluations": evaluation_names(run_dir)}, {LOGS_FILE: pack_logs(run_dir)}
    return save_checkpoint(run_dir, epoch, {"weights": np.full(10, epoch, np.float32)}, state, keep, logs)


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"memory://logs/{uuid4().hex}" if request.param == "memory" else f"file://{tmp_path}/shared/run"


def travelled(url: str) -> list[str]:
    """Names of the evaluations in a mirror."""
    fs, root = fsspec.url_to_fs(url)
    fs.invalidate_cache()
    return sorted(path.rpartition("/")[2].removesuffix(".zip") for path in fs.find(f"{root}/evaluations"))


def bring(url: str, run_dir: Path) -> Path | None:
    """The newest checkpoint of a mirror, with its logs."""
    fetched = fetch_latest(url, run_dir)
    if fetched is not None:
        restore_fetched(fetched, run_dir, url)
    return fetched


def test_logs_wait_until_they_are_asked_for(url: str, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    evaluate(here, 1)
    write_lines(here, [0, 1])
    push(save(here, 1), url, keep=2)
    evaluate(there, 1, score=0.25)
    write_lines(there, [0, 9])
    before = {file: file.read_bytes() for file in there.rglob("*") if file.is_file()}
    fetched = fetch_latest(url, there)
    assert fetched is not None
    assert {file: file.read_bytes() for file in before} == before
    restore_fetched(fetched, there, url)
    assert [row["epoch"] for row in read_metrics(there)] == [0, 1]
    assert evaluation_names(there) == evaluation_names(here)
    write_lines(there, [0, 1, 2])
    restore_fetched(fetched, there, url)
    assert [row["epoch"] for row in read_metrics(there)] == [0, 1, 2]


def test_logs_come_back_as_of_the_checkpoint(url: str, tmp_path: Path) -> None:
    """Lines after it stay behind, and what an older attempt left there is replaced."""
    here, there = tmp_path / "here", tmp_path / "there"
    for epoch in (0, 2):
        evaluate(here, epoch)
    write_lines(here, [0, 1, 2])
    write_atomically(step_file(here, "abc123"), b"7")
    push(save(here, 2), url, keep=2)
    write_lines(here, [0, 1, 2, 3])
    evaluate(there, 2, score=0.25)
    write_lines(there, [0, 9])
    assert bring(url, there) is not None
    assert [row["epoch"] for row in read_metrics(there)] == [0, 1, 2]
    assert (there / "prompts.jsonl").read_text().count("\n") == 4
    assert choose_run_id(there, resumed_epoch=2) == "abc123"
    assert read_step(step_file(there, "abc123")) == 7 + STEP_GAP
    assert evaluation_names(there) == evaluation_names(here)
    for file in ("scores.jsonl", "grid/000_0.png"):
        for epoch in ("epoch_00000", "epoch_00002"):
            relative = Path("evaluations") / epoch / file
            assert (there / relative).read_bytes() == (here / relative).read_bytes()


def test_an_evaluation_travels_once_and_goes_with_its_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    url, sent, pipe = f"memory://logs/{uuid4().hex}", list[str](), MemoryFileSystem.pipe_file
    monkeypatch.setattr(
        MemoryFileSystem, "pipe_file", lambda self, path, value, **_: (sent.append(path), pipe(self, path, value))
    )
    write_lines(tmp_path, [0])
    for epoch in (1, 2, 3):
        evaluate(tmp_path, epoch)
        push(save(tmp_path, epoch, keep=1), url, keep=1)
    assert len(sent) == 3
    assert travelled(url) == evaluation_names(tmp_path)
    evaluate(tmp_path, 3, score=0.25)
    push(save(tmp_path, 3, keep=1), url, keep=1)
    assert travelled(url) == evaluation_names(tmp_path)


def test_half_an_evaluation_is_sent_again(tmp_path: Path) -> None:
    """Only one that a whole checkpoint lists is taken to be there."""
    url = f"memory://logs/{uuid4().hex}"
    write_lines(tmp_path, [0])
    evaluate(tmp_path, 1)
    fs, root = fsspec.url_to_fs(url)
    (name,) = evaluation_names(tmp_path)
    fs.pipe_file(f"{root}/evaluations/{name}.zip", b"PK\3\4 half")
    push(save(tmp_path, 1), url, keep=1)
    assert fs.cat_file(f"{root}/evaluations/{name}.zip") == pack_evaluation(tmp_path, name)


def test_a_lost_evaluation_costs_a_warning(url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for epoch in (1, 2, 3):
        evaluate(tmp_path / "here", epoch)
    write_lines(tmp_path / "here", [0])
    push(save(tmp_path / "here", 3), url, keep=1)
    fs, root = fsspec.url_to_fs(url)
    first, second, _ = (f"{root}/evaluations/{name}.zip" for name in evaluation_names(tmp_path / "here"))
    fs.rm_file(first)
    fs.pipe_file(second, fs.cat_file(second)[:-5])
    assert bring(url, tmp_path / "there") is not None
    assert list_evaluations(tmp_path / "there") == [3]
    assert caplog.text.count("an evaluation is left out") == 2


def test_damaged_logs_make_a_damaged_checkpoint(url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_lines(tmp_path / "here", [0, 1])
    push(save(tmp_path / "here", 1), url, keep=2)
    write_lines(tmp_path / "here", [0, 1, 2])
    push(save(tmp_path / "here", 2), url, keep=2)
    fs, root = fsspec.url_to_fs(url)
    fs.pipe_file(f"{root}/checkpoints/epoch_00002/{LOGS_FILE}", b"PK")
    fetched = bring(url, tmp_path / "there")
    assert fetched is not None and fetched.name == "epoch_00001"
    assert f"epoch_00002/{LOGS_FILE} holds 2 bytes" in caplog.text
    assert [row["epoch"] for row in read_metrics(tmp_path / "there")] == [0, 1]


def test_checkpoints_without_logs_are_fetched_all_the_same(url: str, tmp_path: Path) -> None:
    push(save_checkpoint(tmp_path / "here", 1, {"weights": np.zeros(3, np.float32)}, {}, 1), url, keep=1)
    assert bring(url, tmp_path / "there") is not None
    assert [entry.name for entry in (tmp_path / "there").iterdir()] == ["checkpoints"]


def zipped(**contents: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in contents.items():
            archive.writestr(name.replace("__", "/"), text)
    return buffer.getvalue()


RUN = '{"run_id": "x", "wandb_step": 3}'


@pytest.mark.parametrize(
    ("archive", "complaint"),
    [
        (b"", "not a whole zip archive"),
        (zipped(), r"run.json in logs.zip is damaged: KeyError"),
        (zipped(**{"run.json": "[]"}), r"run.json in logs.zip is damaged: TypeError"),
        (zipped(**{"run.json": '{"run_id": "../x", "wandb_step": 3}'}), r"has the run_id '../x'"),
        (
            zipped(**{"run.json": '{"run_id": "x", "wandb_step": -1}'}),
            r"has the wandb_step -1, expected a whole number",
        ),
        (zipped(**{"run.json": RUN, "metrics.jsonl": "x\n{}\n"}), r"logs\.zip/metrics\.jsonl line 1 is damaged"),
        (zipped(**{"run.json": RUN, "prompts.jsonl": "[]\n[]\n"}), r"logs\.zip/prompts\.jsonl line 1 is damaged"),
    ],
)
def test_archives_of_others_are_checked(tmp_path: Path, archive: bytes, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        restore_logs(tmp_path / "run", archive, 1)
    assert not (tmp_path / "run").exists()


def test_archives_never_lead_out_of_the_folder(tmp_path: Path) -> None:
    evaluate(tmp_path / "here", 1)
    (name,) = evaluation_names(tmp_path / "here")
    scores = {part: (tmp_path / "here/evaluations/epoch_00001" / part).read_text() for part in ("scores.jsonl",)}
    with pytest.raises(ValueError, match=r"holds '../evil', which is no file of an evaluation"):
        restore_evaluation(tmp_path / "there", name, zipped(**scores, **{"..__evil": ""}))
    with pytest.raises(ValueError, match="is damaged"):
        restore_evaluation(tmp_path / "there", name, zipped(**scores, **{"summary.json": "{}"}))
    with pytest.raises(ValueError, match="is no name of an evaluation"):
        has_evaluation(tmp_path, "../../evil")
    assert not (tmp_path / "there").exists() and not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    ("part", "content", "complaint"),
    [
        ("scores.jsonl", b'{"prompt_index": "x"}\n', r"scores\.jsonl line 1 is damaged"),
        ("summary.json", b'{"grid_prompts": "x"}', r"summary\.json is damaged"),
        ("grid/000_0.png", b"<svg onload='alert(1)'/>", r"grid/000_0\.png is not a whole picture"),
    ],
)
def test_evaluations_that_no_report_could_show_are_left_out(
    tmp_path: Path, part: str, content: bytes, complaint: str
) -> None:
    evaluate(tmp_path / "here", 1)
    (tmp_path / "here/evaluations/epoch_00001" / part).write_bytes(content)
    (name,) = evaluation_names(tmp_path / "here")
    with pytest.raises(ValueError, match=f"^{name}/{complaint}"):
        restore_evaluation(tmp_path / "there", name, pack_evaluation(tmp_path / "here", name))
    assert list_evaluations(tmp_path / "there") == []


REWARD = """\
import os, signal
from pathlib import Path
def red(images, prompts, metadata):
    calls = Path(os.environ["CALLS"])
    with calls.open("a") as file:
        file.write("x")
    if calls.stat().st_size == int(os.environ["DEADLY_CALL"]):
        os.kill(os.getpid(), signal.SIGKILL)
    return images[..., 0].mean((1, 2)) / 255
"""
SECRETS = {"WANDB_API_KEY": "geheim" * 7, "AWS_SECRET_ACCESS_KEY": "geheim-aws", "RAY_AUTH_TOKEN": "geheim-ray"}


def test_a_run_killed_on_one_machine_ends_whole_on_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL in the fourth epoch, while the newest checkpoint is of the second: the third is done twice, told once."""
    pytest.importorskip("wandb")
    from wandb_files import history, started

    (tmp_path / "killing_learner.py").write_text(REWARD)
    words = ["train", "experiment=mixtures_small", "reward=callable", "reward.path=killing_learner.red"]
    words += ["~reward.kl_weight", "sampler.steps=3", "tracking.console=false", "tracking.report=false"]
    words += ["epochs=4", "prompts_per_epoch=2", "images_per_prompt=2", "sampler.prompts_per_chunk=1"]
    words += ["evaluation.every=1", "evaluation.prompts=2", "evaluation.final_prompts=2", "checkpoint.every=2"]
    mirror = tmp_path / "mirror"
    elsewhere = [f"checkpoint.mirror=file://{mirror}", "checkpoint.resume=auto", "tracking.wandb=offline"]

    def run(folder: Path, deadly: int, *more: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **SECRETS, "WANDB_MODE": "offline", "DEADLY_CALL": str(deadly)}
        environment |= {name: str(tmp_path) for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR")}
        environment["CALLS"] = f"{folder}.calls"
        command = [sys.executable, "-m", "prdp", *words, f"output_dir={folder}", *more]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600)

    # Two chunks in every epoch and in the evaluation before it: the 15th call is the fourth epoch's.
    lost, found, straight = tmp_path / "lost", tmp_path / "found", tmp_path / "straight"
    died = run(lost, 15, *elsewhere)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert [row["epoch"] for row in read_metrics(lost)] == [0, 1, 2, 3]
    run_id = read_status(lost)["run_id"]
    lost.rename(tmp_path / "gone")
    ended = run(found, 0, *elsewhere)
    assert ended.returncode == 0, ended.stderr
    monkeypatch.chdir(tmp_path)
    for name, value in {"CALLS": f"{straight}.calls", "DEADLY_CALL": "0"}.items():
        monkeypatch.setenv(name, value)
    assert main([*words, f"output_dir={straight}"]) == 0

    tensors, expected = (load_checkpoint(run / "checkpoints/epoch_00004").tensors for run in (found, straight))
    assert tensors.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(tensors[name], value, err_msg=name)
    assert lasting(read_metrics(found)) == lasting(read_metrics(straight))
    assert read_prompt_log(found) == read_prompt_log(straight)
    assert check_usage(found).faults == ()
    assert main(["prompts", "used", str(found)]) == 0
    assert evaluation_names(found) == evaluation_names(straight)
    assert list_evaluations(found) == [0, 1, 2, 3, 4]

    assert read_status(found)["run_id"] == run_id
    (session,) = (found / "wandb").glob("offline-run-*/*.wandb")
    assert started(session).run_id == run_id
    rows = [row for row in history(session) if "reward/mean" in row or "eval/score" in row]
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3, 4]
    assert min(row["_step"] for row in rows) >= STEP_GAP
    for file in (path for path in mirror.rglob("*") if path.is_file()):
        contents = [file.read_bytes()]
        if file.suffix == ".zip":
            with zipfile.ZipFile(file) as archive:
                contents += [archive.read(name) for name in archive.namelist()]
        assert not any(b"geheim" in content for content in contents), file


def lasting(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The log without what the clock tells, and without the facts about the reward, which begin each session."""
    timed = ("time/", "images_per_second/", "wall_seconds", "reward_identity")
    return [{name: value for name, value in row.items() if not name.startswith(timed)} for row in rows]
