"""Arrays whose rows lie in pieces elsewhere: who holds one sees its shape, and fetches the rows that are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from prdp.support.errors import ResumableError


class RowsLostError(ResumableError, RuntimeError):
    """Rows are gone with the machine that held them.

    Attributes:
        where: what they are of, as the `Piece` says.
    """

    def __init__(self, message: str, where: str) -> None:
        super().__init__(message, where)  # both, since errors travel as their arguments
        self.where = where

    def __str__(self) -> str:
        return str(self.args[0])


class Piece(Protocol):
    """Rows of several arrays, in one place."""

    def fetch(self, name: str) -> np.ndarray:
        """All rows of one array, not to be written to; of shared memory where that is possible.

        Raises:
            RowsLostError: they are gone.
        """
        ...


@dataclass(frozen=True)
class Stretch:
    """Rows `first` to `end` - 1 of a piece."""

    piece: Piece
    first: int
    end: int

    def __len__(self) -> int:
        return self.end - self.first


class RemoteRows:
    """An array [n, ...] of several stretches, one after the other.

    Indexing gives an array of numpy's with the rows that were asked for, copied; only pieces that hold some of them are
    fetched, and none is kept. `numpy.asarray` gives all.

    Args:
        name: of the array in its pieces.
        stretches: in order.
        shape: of a row.
        dtype: of the numbers.
    """

    def __init__(self, name: str, stretches: Sequence[Stretch], shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        self.name, self.stretches, self._row = name, tuple(stretches), tuple(shape)
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self._ends = np.cumsum([len(one) for one in self.stretches], dtype=np.int64)

    @property
    def shape(self) -> tuple[int, ...]:
        """As of numpy."""
        return int(self._ends[-1]) if len(self._ends) else 0, *self._row

    @property
    def ndim(self) -> int:
        """As of numpy."""
        return 1 + len(self._row)

    @property
    def nbytes(self) -> int:
        """As of numpy."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[np.ndarray]:
        for stretch in self.stretches:
            yield from self._whole(stretch)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        if len(self.stretches) == 1:
            return np.array(self._whole(self.stretches[0]), dtype, copy=copy)
        if copy is False:
            raise ValueError(f"'{self.name}' lies in {len(self.stretches)} pieces, which make an array by a copy only")
        return self._rows(slice(0, len(self)), ()).astype(dtype or self.dtype, copy=False)

    def __getitem__(self, index: Any) -> np.ndarray:
        """As of numpy, except that the result is always a copy."""
        rows, *rest = index if isinstance(index, tuple) else (index,)
        if isinstance(rows, slice) and rows.step in (None, 1) and _by_row(rest, None):
            return self._rows(slice(*rows.indices(len(self))[:2]), tuple(rest))
        if isinstance(rows, int | np.integer):
            return cast("np.ndarray", self[np.array([rows], np.int64)][(0, *rest)])
        wanted = np.asarray(rows) if isinstance(rows, list | np.ndarray) else None
        if wanted is None or wanted.ndim != 1 or wanted.dtype.kind not in "iu" or not _by_row(rest, wanted):
            return np.array(np.asarray(self)[index])
        return self._chosen(wanted, rest)

    def part(self, first: int, end: int) -> RemoteRows:
        """Rows `first` to `end` - 1, still elsewhere."""
        found, begin = [], 0
        for stretch in self.stretches:
            low, high = max(first - begin, 0), min(end - begin, len(stretch))
            if low < high:
                found.append(Stretch(stretch.piece, stretch.first + low, stretch.first + high))
            begin += len(stretch)
        return RemoteRows(self.name, found, self._row, self.dtype)

    def moved(self, new: Callable[[Piece], Piece]) -> RemoteRows:
        """The same rows in other pieces."""
        stretches = [Stretch(new(one.piece), one.first, one.end) for one in self.stretches]
        return RemoteRows(self.name, stretches, self._row, self.dtype)

    @classmethod
    def joined(cls, parts: Sequence[RemoteRows]) -> RemoteRows:
        """Arrays of one name, shape and dtype, one after the other."""
        one = parts[0]
        return cls(one.name, [stretch for part in parts for stretch in part.stretches], one._row, one.dtype)

    def _whole(self, stretch: Stretch) -> np.ndarray:
        return stretch.piece.fetch(self.name)[stretch.first : stretch.end]

    def _rows(self, rows: slice, rest: tuple[Any, ...]) -> np.ndarray:
        """Consecutive rows; `rest` is the index of the further axes."""
        some = self.part(rows.start, max(rows.start, rows.stop))
        if not some.stretches:
            return np.empty((0, *self._row), self.dtype)[(slice(None), *rest)]
        return np.concatenate([self._whole(stretch)[(slice(None), *rest)] for stretch in some.stretches])

    def _chosen(self, rows: npt.NDArray[np.integer], rest: Sequence[Any]) -> np.ndarray:
        """Rows by number; arrays in `rest` have an entry for each of them."""
        count = len(self)
        beyond = rows[(rows < -count) | (rows >= count)]
        if beyond.size:
            raise IndexError(f"row {beyond[0]} of '{self.name}', which has {count}")
        rows = np.where(rows < 0, rows + count, rows).astype(np.int64)
        places = np.searchsorted(self._ends, rows, side="right")
        found: np.ndarray | None = None
        for place in np.unique(places):
            at, stretch = np.flatnonzero(places == place), self.stretches[place]
            local = rows[at] - (self._ends[place] - len(stretch))
            own = [one[at] if isinstance(one, np.ndarray) else one for one in rest]
            values = self._whole(stretch)[(local, *own)]
            if found is None:
                found = np.empty((len(rows), *values.shape[1:]), self.dtype)
            found[at] = values
        if found is None:
            return np.empty((0, *self._row), self.dtype)[(rows, *rest)]
        return found


RowArray = np.ndarray | RemoteRows
"""An array with a row an image or a prompt: here, or elsewhere."""


def part_of_rows(rows: RowArray, first: int, end: int) -> RowArray:
    """Rows `first` to `end` - 1: a view, or still elsewhere."""
    return rows.part(first, end) if isinstance(rows, RemoteRows) else rows[first:end]


def _by_row(rest: Sequence[Any], rows: np.ndarray | None) -> bool:
    """Whether an index of further axes picks the same of all rows or, by arrays, for each of `rows` on its own."""
    return all(
        isinstance(one, int | np.integer | slice)
        or (rows is not None and isinstance(one, np.ndarray) and one.shape == rows.shape)
        for one in rest
    )
