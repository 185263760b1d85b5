"""Memory of rollouts that is used again once they are released.

A rollout at true size is gigabytes, and memory fresh from the system is zeroed page by page when it is first touched,
which can cost more than all else that a driver does. What is never released goes as any object does.
"""

from __future__ import annotations

import math
import threading

import numpy as np
import numpy.typing as npt

SMALLEST = 1 << 20
"""Bytes from which on memory is kept."""

_free: list[np.ndarray] = []
_lock = threading.Lock()


def empty(shape: tuple[int, ...], dtype: npt.DTypeLike) -> np.ndarray:
    """As `numpy.empty`, in released memory of the same size, if there is any.

    Where there is none, all that was released is given back to the system: sizes rarely change.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size < SMALLEST:
        return np.empty(shape, dtype)
    with _lock:
        for place, memory in enumerate(_free):
            if memory.nbytes == size:
                return _free.pop(place).view(dtype).reshape(shape)
        _free.clear()
    return np.empty(shape, dtype)


def release(array: np.ndarray) -> None:
    """Have the memory of an array used again: nobody may look at any part of it from now on.

    Args:
        array: whole, as `empty` gave it; the memory of views, of small arrays and of those that cannot be written is
            left alone.

    Raises:
        ValueError: it was released already.
    """
    if array.nbytes < SMALLEST or not (array.flags.c_contiguous and array.flags.writeable) or not _is_whole(array):
        return
    memory = array.reshape(-1).view(np.uint8)
    with _lock:
        if any(np.may_share_memory(memory, other) for other in _free):
            raise ValueError(f"memory of {array.nbytes:,} bytes was released twice")
        _free.append(memory)


def free_bytes() -> int:
    """What was released and is not in use again."""
    with _lock:
        return sum(memory.nbytes for memory in _free)


def _is_whole(array: np.ndarray) -> bool:
    """Whether an array covers all of the memory that it lies in."""
    owner = array
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    return owner.base is None and owner.nbytes == array.nbytes
