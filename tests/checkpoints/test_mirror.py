"""What reaches a mirror is whole or nothing, a failing network never ends a run, and a run goes on from its mirror."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from prdp.checkpoints import mirror as checkpoint_mirror
from prdp.checkpoints.checkpoint import CheckpointError, load_checkpoint, resolve_resume, sealed
from prdp.checkpoints.mirror import MirrorError, check_writable, claim, fetch_latest, push
from prdp.checkpoints.mirror_url import check_url, url_problem
from prdp.checkpoints.run_lock import LockLostError, Owner
from prdp.checkpoints.saving import save_checkpoint
from prdp.support.errors import ConfigError


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses that were asked for; none is made."""
    asked: list[float] = []
    monkeypatch.setattr(checkpoint_mirror, "_sleep", asked.append)
    return asked


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty mirror."""
    return f"memory://mirror/{uuid4().hex}" if request.param == "memory" else f"file://{tmp_path}/shared/run"


@pytest.fixture
def memory_url() -> str:
    return f"memory://mirror/{uuid4().hex}"


def save(run_dir: Path, epoch: int, keep: int = 2) -> Path:
    """A checkpoint that knows its epoch."""
    return save_checkpoint(run_dir, epoch, {"weights": np.full(1000, epoch, np.float32)}, {"epoch": epoch}, keep)


def held(url: str) -> dict[str, list[str]]:
    """Checkpoint folders of a mirror and the files in them."""
    fs, root = fsspec.url_to_fs(url)
    fs.invalidate_cache()
    paths = [path.split("/checkpoints/")[1] for path in fs.find(f"{root}/checkpoints")]
    folders: dict[str, list[str]] = {}
    for path in sorted(paths):
        folders.setdefault(path.partition("/")[0], []).append(path.partition("/")[2])
    return folders


FILES = ["learner.safetensors", "state.json"]


def test_a_run_on_another_machine_goes_on_from_the_mirror(url: str, tmp_path: Path) -> None:
    for epoch in (1, 2, 3):
        assert push(save(tmp_path / "here", epoch), url, keep=2)
    assert held(url) == {"epoch_00002": FILES, "epoch_00003": FILES}
    fetched = fetch_latest(url, tmp_path / "there")
    assert fetched == tmp_path / "there" / "checkpoints" / "epoch_00003"
    assert resolve_resume("auto", tmp_path / "there") == fetched
    loaded, original = load_checkpoint(fetched), load_checkpoint(tmp_path / "here" / "checkpoints" / "epoch_00003")
    assert (loaded.epoch, loaded.state) == (original.epoch, original.state)
    np.testing.assert_array_equal(loaded.tensors["weights"], original.tensors["weights"])


def test_state_json_arrives_last(memory_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    put = MemoryFileSystem.put_file
    monkeypatch.setattr(
        MemoryFileSystem, "put_file", lambda self, local, remote, **_: (sent.append(remote), put(self, local, remote))
    )
    push(save(tmp_path, 1), memory_url, keep=2)
    assert [path.rpartition("/")[2] for path in sent] == FILES


def test_an_empty_mirror_gives_nothing(url: str, tmp_path: Path) -> None:
    assert fetch_latest(url, tmp_path) is None
    assert resolve_resume("auto", tmp_path) is None


def test_what_is_here_is_kept_when_it_is_as_new(url: str, tmp_path: Path) -> None:
    push(save(tmp_path, 1), url, keep=2)
    save(tmp_path, 2)
    assert fetch_latest(url, tmp_path) is None


def test_a_newer_one_of_the_mirror_beats_what_an_earlier_machine_left_behind(url: str, tmp_path: Path) -> None:
    push(save(tmp_path / "first", 1), url, keep=3)
    fetch_latest(url, tmp_path / "second")
    push(save(tmp_path / "second", 2), url, keep=3)
    fetched = fetch_latest(url, tmp_path / "first")
    assert fetched is not None
    assert fetched.name == "epoch_00002"
    assert resolve_resume("auto", tmp_path / "first") == fetched


def test_half_uploads_are_not_taken_for_whole(url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    push(save(tmp_path / "here", 1), url, keep=3)
    push(save(tmp_path / "here", 2), url, keep=3)
    fs, root = fsspec.url_to_fs(url)
    fs.rm_file(f"{root}/checkpoints/epoch_00002/state.json")
    fetched = fetch_latest(url, tmp_path / "there")
    assert fetched is not None
    assert fetched.name == "epoch_00001"
    assert "epoch_00002: a half upload" in caplog.text


@pytest.mark.parametrize(
    "change, complaint",
    [
        (lambda content: content[:-1], "truncated or replaced"),
        (lambda content: content[:-1] + bytes([content[-1] ^ 1]), "is damaged: checksum"),
        (None, "is missing"),
    ],
    ids=["cut", "flipped", "gone"],
)
def test_damaged_ones_are_skipped(
    url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, change: Any, complaint: str
) -> None:
    push(save(tmp_path / "here", 1), url, keep=3)
    push(save(tmp_path / "here", 2), url, keep=3)
    fs, root = fsspec.url_to_fs(url)
    tensors = f"{root}/checkpoints/epoch_00002/learner.safetensors"
    content = fs.cat_file(tensors)
    fs.rm_file(tensors)
    if change is not None:
        fs.pipe_file(tensors, change(content))
    fetched = fetch_latest(url, tmp_path / "there")
    assert fetched is not None
    assert fetched.name == "epoch_00001"
    assert complaint in caplog.text
    assert "epoch_00002/learner.safetensors" in caplog.text
    assert [path.name for path in (tmp_path / "there" / "checkpoints").iterdir()] == ["epoch_00001"]


@pytest.mark.parametrize("name", ["../../evil", "/evil", "a/b", "..", ".hidden", 7])
def test_file_names_never_lead_out_of_the_folder(
    memory_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: Any
) -> None:
    push(save(tmp_path / "here", 1), memory_url, keep=3)
    fs, root = fsspec.url_to_fs(memory_url)
    state = f"{root}/checkpoints/epoch_00001/state.json"
    document = json.loads(fs.cat_file(state))
    del document["checksum"]
    document["files"] = {**document["files"], str(name): {"bytes": 1, "blake2b": ""}} if name != 7 else [name]
    fs.pipe_file(state, sealed(document))
    with pytest.raises(CheckpointError, match=r"no whole checkpoint\n.*epoch_00001/state\.json is damaged: files is"):
        fetch_latest(memory_url, tmp_path / "there")
    assert not (tmp_path / "there" / "checkpoints").exists()
    save(tmp_path / "there", 1)
    assert fetch_latest(memory_url, tmp_path / "there") is None, "there is one to go on with"
    assert "epoch_00001/state.json is damaged" in caplog.text


def test_half_uploads_alone_are_no_reason_not_to_begin(memory_url: str, tmp_path: Path) -> None:
    push(save(tmp_path / "here", 1), memory_url, keep=3)
    fs, root = fsspec.url_to_fs(memory_url)
    fs.rm_file(f"{root}/checkpoints/epoch_00001/state.json")
    assert fetch_latest(memory_url, tmp_path / "there") is None


def test_an_interrupted_upload_leaves_no_old_state_beside_new_tensors(
    memory_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(save(tmp_path, 1), memory_url, keep=3)
    shutil.rmtree(tmp_path / "checkpoints")

    def broken(*_: Any, **__: Any) -> None:
        raise ConnectionError("the line is dead")

    monkeypatch.setattr(MemoryFileSystem, "put_file", broken)
    assert not push(save(tmp_path, 1), memory_url, keep=3)
    assert "state.json" not in held(memory_url).get("epoch_00001", [])


def test_a_return_to_an_earlier_epoch_replaces_what_came_after(url: str, tmp_path: Path) -> None:
    for epoch in (1, 2, 3):
        push(save(tmp_path / "here", epoch, keep=5), url, keep=5)
    shutil.rmtree(tmp_path / "here" / "checkpoints" / "epoch_00003")
    shutil.rmtree(tmp_path / "here" / "checkpoints" / "epoch_00002")
    push(save(tmp_path / "here", 2, keep=5), url, keep=5)
    assert held(url).keys() == {"epoch_00001", "epoch_00002"}


def test_half_uploads_are_tidied_away(url: str, tmp_path: Path) -> None:
    push(save(tmp_path, 1), url, keep=3)
    fs, root = fsspec.url_to_fs(url)
    fs.rm_file(f"{root}/checkpoints/epoch_00001/state.json")
    push(save(tmp_path, 2), url, keep=3)
    assert held(url).keys() == {"epoch_00002"}


def test_one_is_enough(url: str, tmp_path: Path) -> None:
    for epoch in (1, 2):
        push(save(tmp_path, epoch, keep=1), url, keep=1)
    assert held(url) == {"epoch_00002": FILES}


def test_a_failing_network_is_tried_again(
    memory_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    put, failures = MemoryFileSystem.put_file, [ConnectionError("reset"), TimeoutError("slow")]

    def flaky(self: Any, *arguments: Any, **keywords: Any) -> Any:
        if failures:
            raise failures.pop()
        return put(self, *arguments, **keywords)

    monkeypatch.setattr(MemoryFileSystem, "put_file", flaky)
    assert push(save(tmp_path, 1), memory_url, keep=2)
    assert pauses == [1.0, 4.0]
    assert held(memory_url) == {"epoch_00001": FILES}


def test_a_dead_network_costs_a_warning_and_the_next_checkpoint_arrives(
    memory_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    pauses: list[float],
) -> None:
    def dead(*_: Any, **__: Any) -> None:
        raise RuntimeError("EndpointConnectionError")

    with monkeypatch.context() as broken:
        broken.setattr(MemoryFileSystem, "put_file", dead)
        assert not push(save(tmp_path, 1), memory_url, keep=2)
    assert pauses == list(checkpoint_mirror.PAUSES)
    assert "epoch_00001 is not copied" in caplog.text
    assert "EndpointConnectionError" in caplog.text
    assert push(save(tmp_path, 2), memory_url, keep=2)
    assert held(memory_url) == {"epoch_00002": FILES}


def test_pruning_that_fails_costs_a_warning(
    memory_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    push(save(tmp_path, 1), memory_url, keep=1)

    def forbidden(*_: Any, **__: Any) -> None:
        raise PermissionError("no delete")

    monkeypatch.setattr(MemoryFileSystem, "rm", forbidden)
    assert push(save(tmp_path, 2), memory_url, keep=1)
    assert "old checkpoints stay in the mirror" in caplog.text


def test_a_mirror_that_cannot_be_read_is_an_error_unless_there_is_something_to_go_on_with(
    memory_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def dead(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(MemoryFileSystem, "ls", dead)
    with pytest.raises(MirrorError, match=r"memory://.* could not be read: ConnectionError: no route"):
        fetch_latest(memory_url, tmp_path)
    save(tmp_path, 1)
    assert fetch_latest(memory_url, tmp_path) is None
    assert "going on with what" in caplog.text


@pytest.mark.parametrize(
    "given",
    [
        "s3://AKIA123:geheim@bucket/run",
        "s3://geheim@bucket/run",
        "gs://bucket/run?token=geheim",
        "https://host/run#geheim",
        "simplecache::s3://AKIA123:geheim@bucket/run",
    ],
)
def test_credentials_in_a_url_are_refused_and_not_repeated(given: str) -> None:
    with pytest.raises(ConfigError) as raised:
        check_url(given)
    assert "geheim" not in str(raised.value)
    assert "AKIA" not in str(raised.value)
    assert "from the environment" in str(raised.value)


@pytest.mark.parametrize("given", ["/shared/run", "run", "s3://", "file:///", "simplecache::s3://bucket/run"])
def test_what_is_no_url_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match="must be null or a URL with a folder"):
        check_url(given)


def test_unknown_schemes_are_refused() -> None:
    with pytest.raises(ConfigError, match="fsspec knows no s4://"):
        check_url("s4://bucket/run")


@pytest.mark.parametrize("scheme, package, extra", [("s3", "s3fs", "s3"), ("gs", "gcsfs", "gcs")])
def test_a_missing_package_is_named_with_the_cure(
    scheme: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"pip install 'prdp\[{extra}\]'"):
        check_url(f"{scheme}://bucket/run")


@pytest.mark.parametrize("given", ["memory://run", "file:///shared/run"])
def test_plain_urls_pass(given: str) -> None:
    assert url_problem(given) is None
    check_url(given)


def test_a_mirror_of_another_run_is_refused(url: str, tmp_path: Path) -> None:
    check_writable(url, takes_over=False)
    push(save(tmp_path, 1), url, keep=2)
    check_writable(url, takes_over=True)
    with pytest.raises(ConfigError, match="one belongs to one run"):
        check_writable(url, takes_over=False)
    assert held(url) == {"epoch_00001": FILES}


def test_a_mirror_that_cannot_be_written_is_found_at_the_start(
    memory_url: str, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    def forbidden(*_: Any, **__: Any) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", forbidden)
    with pytest.raises(MirrorError, match="could not be written: PermissionError: Access Denied"):
        check_writable(memory_url, takes_over=True)
    assert not pauses


def test_another_runs_mirror_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    from prdp.commands.train import train

    url = f"file://{tmp_path}/mirror"
    push(save(tmp_path / "first", 1), url, keep=1)
    with pytest.raises(ConfigError, match="holds checkpoints"):
        train(["experiment=shapes_smoke", f"checkpoint.mirror={url}", f"output_dir={tmp_path}/third"])
    assert not (tmp_path / "third").exists()


def test_jobs_of_a_sweep_do_not_share_a_mirror(tmp_path: Path) -> None:
    from prdp.commands.train import validate

    sweep = ["-m", "experiment=shapes_smoke", "seed=1,2", f"hydra.sweep.dir={tmp_path}/sweep"]
    with pytest.raises(ConfigError, match="is shared by the jobs of the sweep"):
        validate([*sweep, f"checkpoint.mirror=file://{tmp_path}/mirror"])
    assert validate([*sweep, f"checkpoint.mirror=file://{tmp_path}/mirror/${{hydra:job.num}}"]) == 0


def test_a_secret_in_the_configuration_is_refused_without_showing_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    from prdp.cli import main

    caplog.set_level(logging.DEBUG)
    mirror = "checkpoint.mirror='s3://AKIA123:geheim@bucket/run'"
    assert main(["train", "experiment=shapes_smoke", mirror, f"output_dir={tmp_path}/run"]) == 2
    output = capsys.readouterr()
    assert "user, password or query" in output.err
    assert "geheim" not in output.err + output.out + caplog.text
    assert not (tmp_path / "run").exists()


def test_who_claims_a_mirror_last_writes_to_it(url: str, tmp_path: Path) -> None:
    """Two machines that go on with one run: the earlier one notices, and its checkpoint does not arrive."""
    first, second = Owner.this(), dataclasses.replace(Owner.this(), host="node-7", pid=1)
    claim(url, first)
    assert push(save(tmp_path / "first", 1), url, 2, first)
    claim(url, second)
    assert fetch_latest(url, tmp_path / "second") is not None
    assert push(save(tmp_path / "second", 2), url, 2, second)
    with pytest.raises(LockLostError, match=r"was taken over by pid 1 on node-7"):
        push(save(tmp_path / "first", 3), url, 2, first)
    assert held(url).keys() == {"epoch_00001", "epoch_00002"}
