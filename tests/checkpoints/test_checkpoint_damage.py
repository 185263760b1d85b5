"""Whatever happens to the bytes of a checkpoint, it is whole or it is refused by name."""

from __future__ import annotations

import json
import logging
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import numpy as np
import pytest

from prdp.checkpoints.checkpoint import (
    CheckpointError,
    find_latest,
    load_checkpoint,
    parse_state,
    resolve_resume,
    sealed,
    verified,
)
from prdp.checkpoints.log_archive import LOGS_FILE, evaluation_names, pack_evaluation, pack_logs, restore_evaluation
from prdp.checkpoints.mirror import fetch_latest, push
from prdp.checkpoints.saving import save_checkpoint
from prdp.support.storage import write_atomically
from prdp.tracking.evaluations import save_evaluation
from prdp.tracking.status_file import start_status
from prdp.types import PromptBatch

STATE = {"learner": {"updates": 20}, "prompt_cursor": 60, "wall_seconds": 1.5}


def save(run_dir: Path, epoch: int) -> Path:
    start_status(run_dir, status="running", run_id="abc123")
    write_atomically(run_dir / "metrics.jsonl", b'{"epoch": 0}\n')
    logs = {LOGS_FILE: pack_logs(run_dir)}
    return save_checkpoint(run_dir, epoch, {"weights/a": np.arange(6, dtype=np.float32)}, STATE, 9, logs)


def refused(folder: Path, file: str) -> None:
    with pytest.raises(CheckpointError, match=file):
        verified(folder)


def test_every_flipped_bit_of_the_state_is_refused(tmp_path: Path) -> None:
    content = (save(tmp_path, 20) / "state.json").read_bytes()
    assert parse_state(content, "state.json")["epoch"] == 20
    flipped = bytearray(content)
    accepted = []
    for place in range(8 * len(content)):
        flipped[place // 8] ^= 1 << place % 8
        try:
            parse_state(bytes(flipped), "state.json")
            accepted.append(place)
        except CheckpointError as error:
            assert "state.json" in str(error)
        flipped[place // 8] ^= 1 << place % 8
    assert accepted == []


def test_a_flipped_bit_in_any_byte_of_any_file_is_refused(tmp_path: Path) -> None:
    folder, chance = save(tmp_path, 20), random.Random(7)
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        for place in range(len(content)):
            flipped = bytearray(content)
            flipped[place] ^= 1 << chance.randrange(8)
            file.write_bytes(flipped)
            refused(folder, file.name)
        file.write_bytes(content)
    assert verified(folder)["epoch"] == 20


def test_a_flipped_bit_in_the_mirror_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    url, chance = f"memory://damage/{uuid4().hex}", random.Random(11)
    for epoch in (1, 2):
        push(save(tmp_path / "here", epoch), url, keep=2)
    fs, root = fsspec.url_to_fs(url)
    for path in sorted(fs.find(f"{root}/checkpoints/epoch_00002")):
        content = fs.cat_file(path)
        for place in chance.sample(range(len(content)), 12):
            flipped = bytearray(content)
            flipped[place] ^= 1 << chance.randrange(8)
            fs.pipe_file(path, bytes(flipped))
            caplog.clear()
            fetched = fetch_latest(url, tmp_path / "there")
            assert fetched is not None and fetched.name == "epoch_00001"
            assert path in caplog.text
            shutil.rmtree(tmp_path / "there")
        fs.pipe_file(path, content)
    fetched = fetch_latest(url, tmp_path / "there")
    assert fetched is not None and fetched.name == "epoch_00002"


def test_a_flipped_bit_in_a_travelled_evaluation_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    prompts, pictures = PromptBatch(0, 0, ("a red dot",), ({},)), np.zeros((1, 4, 4, 3), np.uint8)
    save_evaluation(tmp_path, 1, prompts, 1, np.array([0.5]), {}, pictures)
    [name] = evaluation_names(tmp_path)
    archive = pack_evaluation(tmp_path, name)
    folder = tmp_path / "evaluations" / "epoch_00001"
    whole = {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    chance, refusals = random.Random(5), 0
    places = chance.sample(range(len(archive)), 120)
    for place in places:
        flipped = bytearray(archive)
        flipped[place] ^= 1 << chance.randrange(8)
        try:
            restore_evaluation(tmp_path, name, bytes(flipped))
        except ValueError:
            refusals += 1
        found = {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        assert found == whole, place
    assert refusals > len(places) // 2


def changed(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    """Another content, with a checksum that fits."""

    def damage(file: Path) -> None:
        document = json.loads(file.read_bytes())
        del document["checksum"]
        change(document)
        file.write_bytes(sealed(document))

    return damage


def put(**values: Any) -> Callable[[Path], Any]:
    return changed(lambda document: document.update(values))


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGE = {
    "a longer number": lambda file: file.write_bytes(file.read_bytes().replace(b'"epoch": 20', b'"epoch": 21')),
    "empty": lambda file: file.write_bytes(b""),
    "deeply nested": lambda file: file.write_bytes(b"[" * 200_000),
    "not UTF-8": lambda file: file.write_bytes(b'{"format": "\xff\xfe"}'),
    "a number of 5000 digits": lambda file: file.write_bytes(b'{"epoch": ' + b"9" * 5000 + b"}"),
    "a folder": a_folder,
    "gone": Path.unlink,
    "epoch is NaN": put(epoch=float("nan")),
    "epoch is text": put(epoch="20"),
    "epoch is true": put(epoch=True),
    "epoch of another folder": put(epoch=21),
    "epoch is huge": put(epoch=10**300),
    "sequence is infinite": put(sequence=float("inf")),
    "sequence is negative": put(sequence=-1),
    "files is a list": put(files=["learner.safetensors"]),
    "files is empty": put(files={}),
    "files lead elsewhere": put(files={"../x": {"bytes": 0, "blake2b": ""}}),
    "an entry is no mapping": put(files={"learner.safetensors": 3}),
    "an entry lacks its size": put(files={"learner.safetensors": {"blake2b": "0"}}),
    "state is a list": put(state=[]),
    "format_version is text": put(format_version="2"),
    "format_version is a list": put(format_version=[2]),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_of_any_kind_is_skipped_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    older, newer = save(tmp_path, 10), save(tmp_path, 20)
    DAMAGE[kind](newer / "state.json")
    refused(newer, "epoch_00020")
    with caplog.at_level(logging.WARNING):
        assert resolve_resume("auto", tmp_path) == older
    assert "skipping a broken checkpoint" in caplog.text
    assert "epoch_00020" in caplog.text
    assert save(tmp_path, 20) == find_latest(tmp_path)


def test_where_no_checkpoint_is_whole_the_run_does_not_start_over(tmp_path: Path) -> None:
    for epoch in (10, 20):
        (save(tmp_path, epoch) / "learner.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no whole checkpoint in (.|\n)*epoch_00020(.|\n)*epoch_00010"):
        resolve_resume("auto", tmp_path)


def test_damaged_ones_do_not_count_among_those_kept(tmp_path: Path) -> None:
    whole = save(tmp_path, 10)
    put(sequence=float("inf"))(save(tmp_path, 20) / "state.json")
    save_checkpoint(tmp_path, 30, {}, STATE, keep=2)
    assert sorted(path.name for path in whole.parent.iterdir()) == ["epoch_00010", "epoch_00030"]


def test_checkpoints_without_a_checksum_are_read_with_a_note(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = save(tmp_path, 20)
    document = json.loads((folder / "state.json").read_bytes())
    del document["checksum"]
    (folder / "state.json").write_text(json.dumps({**document, "format_version": 1}, indent=1))
    assert load_checkpoint(folder).epoch == 20
    assert "without a checksum" in caplog.text
    (folder / "state.json").write_text(json.dumps(document, indent=1))
    refused(folder, "does not begin with its checksum")
