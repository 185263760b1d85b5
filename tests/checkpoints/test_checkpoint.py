"""A checkpoint is whole or absent, and continues its own run only."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prdp.checkpoints import saving
from prdp.checkpoints.checkpoint import (
    CheckpointError,
    best_checkpoint,
    find_latest,
    load_checkpoint,
    resolve_resume,
    sealed,
)
from prdp.checkpoints.saving import save_checkpoint
from prdp.support import storage
from prdp.support.errors import UserError
from prdp.support.storage import StorageError
from prdp.tracking.evaluations import save_evaluation
from prdp.types import PromptBatch

TENSORS: dict[str, Any] = {
    "weights/a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "optimizer/step/a": np.array(7.0, np.float32),
    "count": np.array([2**62], np.int64),
    "flags": np.array([True, False]),
}
LEARNER = {"updates": 7, "loss": 0.1, "rng": (2**100, None)}
STATE = {"cursor": np.int64(5), "learner": LEARNER, "on": True}


def save(run_dir: Path, epoch: int, keep: int = 2, scale: float = 1.0) -> Path:
    """A checkpoint of the epoch."""
    tensors = {**TENSORS, "weights/a": TENSORS["weights/a"] * np.float32(scale)}
    return save_checkpoint(run_dir, epoch, tensors, STATE, keep)


def saved(run_dir: Path) -> list[str]:
    """Names in the checkpoint folder."""
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def test_round_trip(tmp_path):
    path = save(tmp_path, 10)
    assert path == tmp_path / "checkpoints" / "epoch_00010"
    assert sorted(file.name for file in path.iterdir()) == ["learner.safetensors", "state.json"]
    loaded = load_checkpoint(path)
    assert loaded.epoch == 10
    assert loaded.path == path
    assert loaded.state == {"cursor": 5, "learner": {**LEARNER, "rng": [2**100, None]}, "on": True}
    assert loaded.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert loaded.tensors[name].dtype == tensor.dtype
        assert loaded.tensors[name].shape == tensor.shape
        np.testing.assert_array_equal(loaded.tensors[name], tensor)


def test_generator_state_continues_the_same_stream(tmp_path):
    generator = np.random.default_rng(3)
    generator.standard_normal(5)
    path = save_checkpoint(tmp_path, 1, {}, {"generator": generator.bit_generator.state}, 1)
    other = np.random.default_rng(4)
    other.bit_generator.state = load_checkpoint(path).state["generator"]
    assert other.standard_normal() == generator.standard_normal()


def test_only_the_newest_are_kept(tmp_path):
    for epoch in (5, 10, 15, 20):
        save(tmp_path, epoch, keep=2)
    assert saved(tmp_path) == ["epoch_00015", "epoch_00020"]
    assert find_latest(tmp_path) == tmp_path / "checkpoints" / "epoch_00020"


def test_the_best_on_held_out_prompts_stays_as_well(tmp_path, caplog):
    scores = {0: 0.9, 2: 0.5, 4: 0.7, 6: 0.6, 8: 0.7, 10: 0.4}  # epoch 0 has no checkpoint; of equals the earliest

    def names() -> list[int]:
        return sorted(int(path.name[-5:]) for path in (tmp_path / "checkpoints").iterdir())

    for epoch in range(1, 11):
        lines = [{"epoch": one, "eval/score": value} for one, value in scores.items() if one <= epoch]
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        save_checkpoint(tmp_path, epoch, {}, {}, keep=2, best="eval/score")
        if epoch == 3:
            assert names() == [2, 3]
    assert names() == [4, 9, 10]
    shutil.copytree(tmp_path / "checkpoints" / "epoch_00004", tmp_path / "checkpoints" / "epoch_00004_mine")
    assert best_checkpoint(tmp_path, "eval/score") == tmp_path / "checkpoints" / "epoch_00004"
    assert not caplog.records
    assert best_checkpoint(tmp_path, "eval/colour") is None
    assert "checkpoint.keep_best=eval/colour: no evaluation has told it; there are eval/score" in caplog.text


def test_the_best_is_chosen_by_the_prompts_that_all_evaluations_have(tmp_path):
    """The last evaluation has a hard prompt more, whose 0 would let the better epoch lose by its logged mean."""
    for epoch, scores in {1: [0.6, 0.7], 2: [0.7, 0.8, 0.0]}.items():
        prompts = PromptBatch(0, 0, ("a", "b", "c")[: len(scores)], ({},) * len(scores))
        rewards, colours = np.array(scores), np.array([np.nan, 0.95 - epoch / 20, 1.0])[: len(scores)]
        none = np.zeros((0, 8, 8, 3), np.uint8)
        metrics = save_evaluation(tmp_path, epoch, prompts, 1, rewards, {"colour": colours}, none)
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"epoch": epoch, **metrics}) + "\n")
        save_checkpoint(tmp_path, epoch, {}, {}, keep=2)
    assert metrics["eval/score"] == pytest.approx(0.5) and metrics["eval/colour"] == pytest.approx(0.925)
    assert best_checkpoint(tmp_path, "eval/score") == tmp_path / "checkpoints" / "epoch_00002"
    assert best_checkpoint(tmp_path, "eval/colour") == tmp_path / "checkpoints" / "epoch_00001"
    (tmp_path / "evaluations" / "epoch_00002" / "scores.jsonl").unlink()  # then the logged means decide
    assert best_checkpoint(tmp_path, "eval/score") == tmp_path / "checkpoints" / "epoch_00001"


def test_old_ones_go_only_after_the_new_one_is_in_place(tmp_path, monkeypatch):
    save(tmp_path, 5, keep=1)
    present = []
    remove = shutil.rmtree

    def watching(path: Path, **options: Any) -> None:
        present.append((Path(path).name, saved(tmp_path)))
        remove(path, **options)

    monkeypatch.setattr(saving.shutil, "rmtree", watching)
    save(tmp_path, 10, keep=1)
    assert ("epoch_00005", ["epoch_00005", "epoch_00010"]) in present
    assert saved(tmp_path) == ["epoch_00010"]


def test_after_a_return_to_an_earlier_epoch_the_newer_attempt_counts(tmp_path):
    for epoch in (10, 20, 30):
        save(tmp_path, epoch, keep=9)
    path = save(tmp_path, 20, keep=9, scale=2)
    assert find_latest(tmp_path) == path
    np.testing.assert_array_equal(load_checkpoint(path).tensors["weights/a"], TENSORS["weights/a"] * 2)
    save(tmp_path, 30, keep=2)
    assert saved(tmp_path) == ["epoch_00020", "epoch_00030"]


@pytest.mark.parametrize("call", ["fsync", "mkdir", "rename"])
def test_full_disk_leaves_older_checkpoints_whole(tmp_path, monkeypatch, call):
    older = save(tmp_path, 5)
    before = {file.name: file.read_bytes() for file in older.iterdir()}

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(StorageError, match=r"could not write .*epoch_00010.*No space left on device") as caught:
            save(tmp_path, 10)
    assert caught.value.errno == errno.ENOSPC
    assert ".partial" not in str(caught.value)
    assert saved(tmp_path) == ["epoch_00005"]
    assert {file.name: file.read_bytes() for file in older.iterdir()} == before
    assert find_latest(tmp_path) == older
    assert save(tmp_path, 10) == find_latest(tmp_path)


def test_full_disk_in_the_midst_of_the_tensors(tmp_path):
    resource = pytest.importorskip("resource")
    older = save(tmp_path, 5, keep=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(StorageError, match=r"epoch_00010/learner\.safetensors: .*\(400,000 bytes needed"):
            save_checkpoint(tmp_path, 10, {"weights": np.zeros(100_000, np.float32)}, {}, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert saved(tmp_path) == ["epoch_00005"]
    assert load_checkpoint(older).epoch == 5


def test_leftovers_of_a_killed_process_are_cleared_and_never_taken(tmp_path):
    older = save(tmp_path, 5)
    leftover = older.parent / f"{storage.TEMPORARY}12345678-epoch_00010"
    shutil.copytree(older, leftover)
    assert find_latest(tmp_path) == older
    save(tmp_path, 10)
    assert saved(tmp_path) == ["epoch_00005", "epoch_00010"]


def truncate(file: Path) -> None:
    """Cut the file in half."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: Path) -> None:
    """Change the last byte."""
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))


DAMAGE = [
    ("learner.safetensors", truncate, r"learner\.safetensors holds \d+ bytes instead of \d+: truncated"),
    ("learner.safetensors", flip, r"learner\.safetensors is damaged: checksum \w+ instead of"),
    ("learner.safetensors", lambda file: file.write_text("text"), r"learner\.safetensors holds 4 bytes instead of"),
    ("learner.safetensors", Path.unlink, r"learner\.safetensors is missing"),
    ("state.json", truncate, r"state\.json is half-written or damaged"),
    ("state.json", lambda file: file.write_bytes(b""), r"state\.json is half-written or damaged"),
    ("state.json", lambda file: file.write_bytes(bytes(100)), r"state\.json is half-written or damaged"),
    ("state.json", lambda file: file.write_text('{"epoch": 3}'), r"state\.json is not the state of a checkpoint"),
    ("state.json", lambda file: file.write_text("[]"), r"state\.json is not the state of a checkpoint"),
    ("state.json", Path.unlink, r"state\.json is missing"),
]


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGE)
def test_broken_checkpoints_are_refused_by_name_and_passed_over(tmp_path, caplog, name, damage, message):
    older, newer = save(tmp_path, 5), save(tmp_path, 10)
    damage(newer / name)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(newer)
    assert isinstance(caught.value, UserError)
    with pytest.raises(CheckpointError, match=message):
        resolve_resume(str(newer), tmp_path)
    assert find_latest(tmp_path) == older
    assert "epoch_00010" in caplog.text
    assert resolve_resume("auto", tmp_path) == older


@pytest.mark.parametrize("key", ["epoch", "sequence", "files", "state"])
def test_state_that_lacks_a_part_is_refused(tmp_path, key):
    path = save(tmp_path, 5)
    document = json.loads((path / "state.json").read_text())
    del document[key], document["checksum"]
    (path / "state.json").write_bytes(sealed(document))
    with pytest.raises(CheckpointError, match=rf"state\.json is damaged: it lacks {key}"):
        load_checkpoint(path)


def test_other_format_versions_are_refused(tmp_path):
    path = save(tmp_path, 5)
    document = json.loads((path / "state.json").read_text())
    del document["checksum"]
    (path / "state.json").write_bytes(sealed({**document, "format_version": 99}))
    with pytest.raises(CheckpointError, match=r"format_version 99; this version of prdp reads"):
        load_checkpoint(path)


def test_resume(tmp_path):
    assert resolve_resume("never", tmp_path) is None
    assert resolve_resume("auto", tmp_path) is None
    path = save(tmp_path / "run", 5)
    assert resolve_resume("never", tmp_path / "run") is None
    assert resolve_resume("auto", tmp_path / "run") == path
    assert resolve_resume(str(path), tmp_path / "elsewhere") == path
    assert resolve_resume(str(tmp_path / "run"), tmp_path / "elsewhere") == path
    with pytest.raises(CheckpointError, match=r"there is no checkpoint .*nothing"):
        resolve_resume(str(tmp_path / "nothing"), tmp_path)
    (tmp_path / "notes.txt").write_text("a text")
    with pytest.raises(CheckpointError, match=r"notes\.txt is a file; a checkpoint is a folder"):
        resolve_resume(str(tmp_path / "notes.txt"), tmp_path)
    with pytest.raises(CheckpointError, match=r"is not a checkpoint: state\.json is missing"):
        resolve_resume(str(tmp_path), tmp_path)
    truncate(path / "state.json")
    with pytest.raises(CheckpointError, match="no whole checkpoint in"):
        resolve_resume(str(tmp_path / "run"), tmp_path)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": {"b": np.zeros(2)}}, r"state\.a\.b is a ndarray"),
        ({"a": [1, {2}]}, r"state\.a\[1\] is a set"),
        ({"a": {3: 1}}, r"state\.a has the key 3"),
    ],
)
def test_state_that_json_cannot_hold_is_named_before_anything_is_written(tmp_path, state, message):
    with pytest.raises(TypeError, match=message):
        save_checkpoint(tmp_path, 1, {}, state, 1)
    assert not (tmp_path / "checkpoints").exists()


def test_keeping_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"checkpoint\.keep must be at least 1, got 0"):
        save(tmp_path, 1, keep=0)
