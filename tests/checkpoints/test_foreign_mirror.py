"""A mirror that a stranger made: nothing of it runs, nothing is resolved, and what does not fit is one message."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prdp.checkpoints.checkpoint import FOLDER, STATE_FILE, Checkpoint, CheckpointError, load_checkpoint, sealed
from prdp.checkpoints.compatible import check_state
from prdp.cli import main

WORDS = [
    *("train", "experiment=mixtures_small", "sampler.steps=3", "tracking.console=false", "prompts_per_epoch=2"),
    *("images_per_prompt=2", "evaluation.every=1", "evaluation.prompts=2", "evaluation.final_prompts=2"),
]


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mirror of a run of one epoch."""
    folder = tmp_path_factory.mktemp("stranger")
    run = ["epochs=1", f"output_dir={folder}/run", f"checkpoint.mirror=file://{folder}/mirror"]
    assert main([*WORDS, *run, "tracking.report=false"]) == 0
    return folder / "mirror"


def rewritten(mirror: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A copy of the mirror whose state is another one, with the checksum that belongs to it."""
    shutil.copytree(mirror, tmp_path / "mirror")
    file = tmp_path / "mirror" / FOLDER / "epoch_00001" / STATE_FILE
    document = json.loads(file.read_text())
    del document["checksum"]
    change(document["state"])
    file.write_bytes(sealed(document))
    return file.parent


def resumed(tmp_path: Path, *words: str) -> int:
    run = ["epochs=2", f"output_dir={tmp_path}/out", "checkpoint.resume=auto", *words]
    return main([*WORDS, f"checkpoint.mirror=file://{tmp_path}/mirror", *run])


def test_nothing_of_its_configuration_runs_or_is_resolved(
    mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "a-token-of-the-victim")
    ran = tmp_path / "ran"

    def change(state: dict[str, Any]) -> None:
        state["config"]["reward"] = {"_target_": "os.mkdir", "path": str(ran)}
        state["config"]["sampler"] = {"_target_": "os.mkdir", "path": str(ran)}
        state["config"] |= {"a": "${oc.env:HF_TOKEN}", "b\x1b[2J": "\x1b[31m", "output_dir": "${oc.env:HF_TOKEN}"}

    rewritten(mirror, tmp_path, change)
    (tmp_path / "mirror" / "config.yaml").write_text(f"reward: {{_target_: os.mkdir, path: {ran}}}\n")
    assert resumed(tmp_path) == 2
    shown = capfd.readouterr().err
    assert "a: '${oc.env:HF_TOKEN}' in the checkpoint" in shown and "reward._target_: 'os.mkdir' in the check" in shown
    assert "a-token-of-the-victim" not in shown and "\x1b" not in shown and not ran.exists()
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == [FOLDER]


def test_a_state_that_no_run_saves_is_named(mirror: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rewritten(mirror, tmp_path, lambda state: state.update(wall_seconds="\x1b[31m"))
    assert resumed(tmp_path) == 2
    assert r"state.json: state.wall_seconds is '\x1b[31m', expected a number of seconds" in capfd.readouterr().err


ODD = ("x", [], ["x"], {"a": {"b": 1}}, -5, float("inf"), True)
ALLOWED: dict[str, tuple[Any, ...]] = {
    "config": ({"a": {"b": 1}},),
    "learner": (),
    "prompt_cursor": (),
    "wall_seconds": (),
    "published": (),
    "prompts_fingerprint": ("x",),
    "heldout_fingerprint": ("x",),
    "reward": ({"a": {"b": 1}},),
    "unlogged": (),
    "drawn": ([],),
}


@pytest.mark.parametrize("key", ALLOWED)
def test_every_value_of_another_kind_is_refused_by_key(mirror: Path, tmp_path: Path, key: str) -> None:
    sound = load_checkpoint(mirror / FOLDER / "epoch_00001")
    check_state(sound)
    check_state(Checkpoint(1, sound.tensors, {**sound.state, "unlogged": {"eval/score_low": math.nan}}, sound.path))

    def state(value: Any) -> Checkpoint:
        return Checkpoint(1, sound.tensors, {**sound.state, key: value}, sound.path)

    for value in ODD:
        if value in ALLOWED[key] and value is not True:
            check_state(state(value))
        else:
            with pytest.raises(CheckpointError, match=rf"epoch_00001/state\.json: state\.{key} is .*, expected"):
                check_state(state(value))
    without = Checkpoint(1, sound.tensors, {name: sound.state[name] for name in sound.state if name != key}, sound.path)
    if key in ("config", "learner", "prompt_cursor", "wall_seconds"):
        with pytest.raises(CheckpointError, match=rf"state\.{key} is missing"):
            check_state(without)
    else:
        check_state(without)


def test_a_damaged_evaluation_costs_the_report_and_not_the_run(
    mirror: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(mirror, tmp_path / "mirror")
    assert resumed(tmp_path, "tracking.report=false") == 0
    (tmp_path / "out" / "evaluations" / "epoch_00000" / "scores.jsonl").write_text("x\n")
    with caplog.at_level(logging.WARNING):
        assert resumed(tmp_path, "epochs=3", "tracking.report=true") == 0
    assert "there is no report: " in caplog.text and "scores.jsonl line 1 is damaged" in caplog.text
    assert (tmp_path / "out" / "weights").is_dir() and not (tmp_path / "out" / "report.html").exists()
