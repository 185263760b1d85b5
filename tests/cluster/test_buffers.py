"""Memory is used again when it was released, and never before."""

from __future__ import annotations

import numpy as np
import pytest

from prdp.cluster import buffers

SHAPE = (3, buffers.SMALLEST // 4)


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "_free", [])


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_released_memory_is_used_again_in_any_shape_and_type() -> None:
    array = buffers.empty(SHAPE, np.float32)
    assert (array.shape, array.dtype) == (SHAPE, np.float32)
    where = address(array)
    for shape, dtype in (((2, *SHAPE), np.int16), (SHAPE, np.float32)):
        buffers.release(array)
        assert buffers.free_bytes() == array.nbytes
        array = buffers.empty(shape, dtype)
        assert (array.shape, array.dtype, address(array)) == (shape, dtype, where)
        assert buffers.free_bytes() == 0


def test_memory_that_was_not_released_is_not_given_out() -> None:
    array = buffers.empty(SHAPE, np.float32)
    array[:] = 1.0
    buffers.empty(SHAPE, np.float32)[:] = 2.0
    assert (array == 1.0).all()


def test_a_second_release_is_refused() -> None:
    array = buffers.empty(SHAPE, np.float32)
    buffers.release(array)
    with pytest.raises(ValueError, match="3,145,728 bytes was released twice"):
        buffers.release(array)
    assert buffers.free_bytes() == array.nbytes


def test_parts_of_other_memory_are_left_alone() -> None:
    array = np.zeros((4, *SHAPE), np.float32)
    locked = np.zeros(SHAPE, np.float32)
    locked.flags.writeable = False
    for part in (array[1:], array[:, ::2], locked, np.frombuffer(bytes(2 * buffers.SMALLEST), np.uint8)):
        buffers.release(part)
    assert buffers.free_bytes() == 0


def test_a_new_size_gives_released_memory_back() -> None:
    buffers.release(buffers.empty(SHAPE, np.float32))
    buffers.empty((2, *SHAPE), np.float32)
    assert buffers.free_bytes() == 0


def test_small_arrays_are_plain() -> None:
    for shape in ((4, 0), (16,)):
        array = buffers.empty(shape, np.float64)
        assert array.shape == shape and array.base is None
        buffers.release(array)
    assert buffers.free_bytes() == 0
