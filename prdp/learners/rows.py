"""Arrays divided among processes by their rows, as `torch.chunk` and FSDP do it, and put together again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from prdp.support.tensor_parts import row_range

Arrays = dict[str, np.ndarray]


def rows_of(arrays: Mapping[str, np.ndarray], part: int, parts: int) -> Arrays:
    """The rows of one part, views; an array without dimensions is everybody's.

    Args:
        part: its number, from 0; the last parts have fewer rows, or none, where they do not come out even.
    """
    return {name: _rows(array, part, parts) for name, array in arrays.items()}


def joined(parts: Sequence[Mapping[str, np.ndarray]]) -> Arrays:
    """The whole arrays of all parts, in order."""
    return {
        name: np.concatenate([part[name] for part in parts]) if array.ndim else array
        for name, array in parts[0].items()
    }


def _rows(array: np.ndarray, part: int, parts: int) -> np.ndarray:
    if not array.ndim:
        return array
    return array[slice(*row_range(len(array), part, parts))]
