"""Parts of a checkpoint: who does not see the folder hands its rows over, and one that fails is named."""

from __future__ import annotations

from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest

from prdp.checkpoints.checkpoint import find_latest, load_checkpoint
from prdp.checkpoints.saving import CheckpointWriter
from prdp.learners.part_writer import Calls, PartWriter, StagedParts
from prdp.learners.rows import rows_of
from prdp.support.rank_errors import ShardLostError
from prdp.support.storage import StorageError

WHOLE = {"weights/a": np.arange(10.0).reshape(5, 2), "optimizer/step/a": np.array(3.0)}
LENGTHS = {"a": 5}


class Ranks:
    """Writers of three: a `blind` one does not see the folder, a `broken` one cannot write, a `lost` one is gone."""

    def __init__(self, blind: int = -1, broken: int = -1, lost: int = -1) -> None:
        self.blind, self.broken, self.lost = blind, broken, lost
        self.writers = [PartWriter() for _ in range(3)]
        for part, writer in enumerate(self.writers):
            writer.stage(rows_of(WHOLE, part, 3))

    def ask(self, calls: Calls) -> dict[int, Any]:
        return {rank: self._answer(rank, *call) for rank, call in calls.items()}

    def _answer(self, rank: int, method: str, arguments: tuple[Any, ...]) -> Any:
        writer = self.writers[rank]
        if method == "staged_rows":
            return writer.staged()
        if method == "part_written":
            if rank == self.lost:
                raise ShardLostError(f"learner rank {rank} died")
            return writer.written(*arguments)
        folder, part, parts, others = arguments
        if rank == self.lost:
            return True
        lengths = {} if rank == self.broken else LENGTHS
        return writer.begin("/nowhere/at/all" if rank == self.blind else folder, part, parts, lengths, others)

    def save(self, run_dir: Path, epoch: int = 1) -> CheckpointWriter:
        staged = StagedParts(self.ask, 3, LENGTHS)
        return CheckpointWriter(run_dir, epoch, staged, {"history/keys": np.arange(3)}, {}, keep=3)


@pytest.mark.parametrize("blind", [-1, 0, 2])
def test_all_parts_make_a_checkpoint(tmp_path: Path, blind: int) -> None:
    folder = Ranks(blind=blind).save(tmp_path).result()
    names = [f"learner-0000{part}-of-00003.safetensors" for part in (1, 2, 3)]
    assert sorted(path.name for path in folder.iterdir()) == [*names, "state.json"]
    tensors = load_checkpoint(folder).tensors
    assert set(tensors) == {*WHOLE, "history/keys"}
    for name, array in WHOLE.items():
        np.testing.assert_array_equal(tensors[name], array)


def test_a_part_that_is_not_written_leaves_the_older_checkpoint_the_newest(tmp_path: Path) -> None:
    older = Ranks().save(tmp_path).result()
    with pytest.raises(StorageError, match=r"learner rank 1: KeyError: 'a'"):
        Ranks(broken=1).save(tmp_path, 2).result()
    with pytest.raises(ShardLostError, match="learner rank 2 died"):
        Ranks(lost=2).save(tmp_path, 2).result()
    assert find_latest(tmp_path) == older
    assert [path.name for path in older.parent.iterdir()] == ["epoch_00001"]


class Slow:
    """Tensors that get to the disk when they are let."""

    def __init__(self) -> None:
        self.may_write = Event()
        self.fails = False

    def begin(self, folder: Path, others: Any) -> None:
        self.folder = folder

    def wait(self) -> None:
        pass

    def files(self, ended: Event) -> dict[str, Any]:
        from prdp.support.storage import save_tensors
        from prdp.support.tensor_parts import fingerprint_file

        assert self.may_write.wait(60)
        if self.fails:
            raise StorageError(f"could not write {self.folder}")
        save_tensors(self.folder / "learner.safetensors", {"weights/a": np.ones(2)})
        return {"learner.safetensors": fingerprint_file(self.folder / "learner.safetensors")}


def test_a_checkpoint_is_the_newest_when_all_of_it_is_there_and_not_before(tmp_path: Path) -> None:
    older = Ranks().save(tmp_path).result()
    slow, then = Slow(), []
    writer = CheckpointWriter(tmp_path, 2, slow, {}, {"on": True}, 1, then=then.append)
    assert find_latest(tmp_path) == older
    assert (writer.path, writer.is_done(), then) == (None, False, [])
    slow.may_write.set()
    newer = writer.result()
    assert find_latest(tmp_path) == newer == tmp_path / "checkpoints" / "epoch_00002"
    assert then == [newer]
    assert not older.exists()
    failing = Slow()
    failing.fails = True
    failing.may_write.set()
    with pytest.raises(StorageError, match=r"could not write .*epoch_00003"):
        CheckpointWriter(tmp_path, 3, failing, {}, {}, 1).result()

    def refuse() -> None:
        raise PermissionError("the lock is another's")

    slow = Slow()
    slow.may_write.set()
    with pytest.raises(PermissionError, match="another's"):
        CheckpointWriter(tmp_path, 3, slow, {}, {}, 1, check=refuse).result()
    assert [path.name for path in newer.parent.iterdir()] == ["epoch_00002"]
