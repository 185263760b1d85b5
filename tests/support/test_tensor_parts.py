"""Tensors divided among files: any rows of them are those of the whole, for torch's own reader too."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from prdp.support.storage import TensorFileError, save_tensors
from prdp.support.tensor_parts import (
    StoredTensors,
    fingerprint_file,
    part_file,
    row_range,
    save_part,
    tensor_files,
)

PARTS = 4
WHOLE = {
    "weights/a": np.arange(39, dtype=np.float32).reshape(13, 3),
    "weights/one": np.array([0.5], np.float32),
    "optimizer/exp_avg/a": np.arange(39.0).reshape(13, 3),
    "optimizer/step/a": np.array(7.0, np.float32),
}
LENGTHS = {"a": 13, "one": 1}
OTHERS = {"history/keys": np.array([2**64 - 1, 3], np.uint64), "published/1/a": np.ones((3, 2), np.float32)}


def rows(part: int) -> dict[str, np.ndarray]:
    return {
        name: array[slice(*row_range(len(array), part, PARTS))] if array.ndim else array
        for name, array in WHOLE.items()
    }


def saved(folder: Path) -> list[Path]:
    for part in range(PARTS):
        others = {} if part else OTHERS
        told = save_part(folder, part, PARTS, rows(part), LENGTHS, others)
        assert told == fingerprint_file(folder / part_file(part, PARTS))
    return [folder / name for name in tensor_files(os.listdir(folder))]


def test_any_rows_are_those_of_the_whole(tmp_path: Path) -> None:
    stored = StoredTensors(saved(tmp_path))
    expected = WHOLE | OTHERS
    assert set(stored) == set(expected)
    for again in (stored, pickle.loads(pickle.dumps(stored))):
        assert again.reachable()
        for name, array in expected.items():
            assert again[name].dtype == array.dtype
            assert again[name].flags.writeable
            np.testing.assert_array_equal(again[name], array)
    for parts in (1, 2, 3, 5):
        chunks = torch.from_numpy(WHOLE["weights/a"]).chunk(parts)
        for part in range(parts):
            some = stored.part(part, parts)
            np.testing.assert_array_equal(some["weights/a"], chunks[part].numpy())
            assert len(some["weights/one"]) == (part == 0)
            assert some["optimizer/step/a"] == 7.0
    assert {name: array.shape for name, array in stored.shapes("weights/").items()} == {"a": (13, 3), "one": (1,)}


def test_torch_reads_them(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    saved(tmp_path)
    target = {name: torch.zeros(array.shape, dtype=torch.from_numpy(array).dtype) for name, array in WHOLE.items()}
    dcp.load(target, storage_reader=dcp.HuggingFaceStorageReader(str(tmp_path)), no_dist=True)
    for name, array in WHOLE.items():
        np.testing.assert_array_equal(target[name].numpy(), array, name)


def test_one_file_is_read_as_parts_are(tmp_path: Path) -> None:
    save_tensors(tmp_path / "learner.safetensors", WHOLE)
    stored = StoredTensors([tmp_path / "learner.safetensors"])
    np.testing.assert_array_equal(stored.part(1, 2)["weights/a"], WHOLE["weights/a"][7:])
    assert stored["optimizer/step/a"] == 7.0


def test_files_that_make_no_whole_are_refused_by_name(tmp_path: Path) -> None:
    files = saved(tmp_path)
    with pytest.raises(ValueError, match="learner-00003-of-00004"):
        tensor_files([path.name for path in files if "00003" not in path.name])
    with pytest.raises(TensorFileError, match=r"00004-of-00004.*rows of '[a-z_/]+' begin at 12, expected 8"):
        StoredTensors([files[0], files[1], files[3]])
    for told, complaint in (
        ("[", "does not tell where rows begin"),
        (json.dumps({"weights/a": {"saved_offsets": [8, 1]}}), "weights/a: "),
        ("{}", "does not tell where rows begin: 'weights/a'"),
    ):
        save_tensors(files[2], {"weights/a": WHOLE["weights/a"][8:12]}, {"DCP_SHARDING_INFO": told})
        with pytest.raises(TensorFileError, match=f"00003-of-00004.*{complaint}"):
            StoredTensors(files)
    third = rows(2)
    offsets = json.dumps({name: {"saved_offsets": [8, 0]} for name in ("weights/a", "optimizer/exp_avg/a")})
    narrow = {"weights/a": third["weights/a"][:, :2], "optimizer/exp_avg/a": third["optimizer/exp_avg/a"]}
    save_tensors(files[2], narrow, {"DCP_SHARDING_INFO": offsets})
    with pytest.raises(TensorFileError, match=r"00003-of-00004.*rows of 'weights/a' are F32 \(4, 2\)"):
        StoredTensors(files)
    files[1].write_bytes(files[1].read_bytes()[:-1])
    with pytest.raises(TensorFileError, match=r"00002-of-00004\.safetensors is not a whole safetensors file"):
        StoredTensors(files)


def test_other_files_under_the_same_path_are_not_taken_for_these(tmp_path: Path) -> None:
    files = saved(tmp_path)
    stored = StoredTensors(files)
    os.utime(files[1], ns=(1, 1))
    assert not stored.reachable()
    files[1].unlink()
    assert not stored.reachable()
