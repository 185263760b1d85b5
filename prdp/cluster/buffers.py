"""Memory of rollouts that is used again once nothing refers to it any more.

A rollout at true size is gigabytes, and memory fresh from the system is zeroed page by page when it is first touched,
which can cost more than all else that a driver does. Numpy's views name the array that owns their memory, so the number
of references to an owner tells whether any part of it is still in use, wherever it went.
"""

from __future__ import annotations

import math
import sys
import threading

import numpy as np
import numpy.typing as npt

SMALLEST = 1 << 20
"""Bytes from which on memory is kept."""

_kept: list[np.ndarray] = []
_lock = threading.Lock()


def empty(shape: tuple[int, ...], dtype: npt.DTypeLike) -> np.ndarray:
    """As `numpy.empty`, in memory of the same size that was used before and is free again, if there is any.

    Where there is none, what else is free is given back to the system first: sizes rarely change.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size < SMALLEST:
        return np.empty(shape, dtype)
    with _lock:
        free = [place for place in range(len(_kept)) if _free(place)]
        owner = next((_kept[place] for place in free if _kept[place].nbytes == size), None)
        if owner is None:
            for place in reversed(free):
                del _kept[place]
            owner = np.empty(size, np.uint8)
            _kept.append(owner)
        return owner.view(dtype).reshape(shape)


def kept_bytes() -> int:
    """What is held, in use or not."""
    with _lock:
        return sum(owner.nbytes for owner in _kept)


def _free(place: int) -> bool:
    """Whether only the list refers to an owner, and the call that counts."""
    return sys.getrefcount(_kept[place]) == 2
