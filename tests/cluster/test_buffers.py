"""Memory is used again when no part of it is in use, and never before."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from prdp.cluster import buffers

SHAPE = (3, buffers.SMALLEST // 4)


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(buffers, "_kept", [])
    yield


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_free_memory_is_used_again_in_any_shape_and_type() -> None:
    first = buffers.empty(SHAPE, np.float32)
    assert (first.shape, first.dtype) == (SHAPE, np.float32)
    where = address(first)
    del first
    again = buffers.empty((2, *SHAPE), np.int16)
    assert (again.shape, again.dtype, address(again)) == ((2, *SHAPE), np.int16, where)
    assert buffers.kept_bytes() == again.nbytes


@pytest.mark.parametrize(
    "part",
    [
        lambda array: array[1:, ::2],
        lambda array: array.reshape(-1)[5:6],
        lambda array: torch.from_numpy(array)[0, :1],
        lambda array: memoryview(array),
    ],
    ids=["slice", "reshaped", "tensor", "memoryview"],
)
def test_memory_of_which_any_part_is_in_use_is_not_given_out(part) -> None:
    array = buffers.empty(SHAPE, np.float32)
    held, where = part(array), address(array)
    del array
    other = buffers.empty(SHAPE, np.float32)
    assert address(other) != where
    del held
    assert address(buffers.empty(SHAPE, np.float32)) == where


def test_a_new_size_gives_free_memory_back() -> None:
    used, free = buffers.empty(SHAPE, np.float32), buffers.empty(SHAPE, np.float32)
    del free
    larger = buffers.empty((2, *SHAPE), np.float32)
    assert buffers.kept_bytes() == used.nbytes + larger.nbytes


def test_small_arrays_are_plain() -> None:
    assert buffers.empty((4, 0), np.float64).shape == (4, 0)
    assert buffers.empty((16,), np.float64).base is None
    assert buffers.kept_bytes() == 0
