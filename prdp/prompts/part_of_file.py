"""A file of prompts cut in two: those that are trained on, and those that are held out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from prdp.prompts.any_file import open_prompts
from prdp.prompts.duplicates import held_out_rows
from prdp.prompts.options import check_text
from prdp.prompts.table import PromptTable
from prdp.types import Int64

PARTS = ("train", "heldout")
MOST_HELD_OUT = 500


class PartOfPrompts:
    """One part of a table, as a source; which one a prompt is in depends on its text, see `held_out_rows`.

    Attributes:
        fingerprint: changes with the table and with the cut.
    """

    def __init__(self, table: PromptTable, part: str, count: int, seed: int) -> None:
        self._table, self._part = table, part
        self._cut = (table.fingerprint, count, seed)
        self._rows = _rows(table, count, seed)[part]
        self.fingerprint = f"{table.fingerprint}:{part}:{count}:{seed}"

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[str, dict[str, Any]]:
        return self._table[int(self._rows[index])]

    def texts(self) -> Iterator[str]:
        """The prompts in order."""
        wanted = np.zeros(len(self._table), bool)
        wanted[self._rows] = True
        return (text for text, of_part in zip(self._table.texts(), wanted, strict=True) if of_part)

    def is_disjoint(self, other: object) -> bool:
        """Whether it is the other part of the same cut."""
        return isinstance(other, PartOfPrompts) and other._cut == self._cut and other._part != self._part


def part_of_prompts(
    path: str, part: str, held_out: int | None = None, seed: int = 0, **options: Any
) -> PartOfPrompts:
    """The prompts of a file that are trained on, or the others.

    Args:
        path, options: of `open_prompts`; equal in both parts.
        part: train or heldout.
        held_out: how many prompts the second part has, more where equal ones go with them; null for one in ten, and at
            most 500.
        seed: another one, another cut.

    Raises:
        ValueError: another part, a file with fewer than two different prompts, and the reader's own errors.
    """
    check_text("part", part, optional=False)
    if part not in PARTS:
        raise ValueError(f"part={part!r}: must be {' or '.join(PARTS)}")
    table = open_prompts(path, **options)
    count = min(max(len(table) // 10, 1), MOST_HELD_OUT) if held_out is None else held_out
    try:
        return PartOfPrompts(table, part, count, seed)
    except ValueError as error:
        raise ValueError(f"prompts file {path} cannot be cut into {' and '.join(PARTS)}: {error}") from None


_cuts: dict[tuple[str, int, int], Mapping[str, Int64]] = {}
"""By fingerprint, count and seed: both parts, and the jobs of a sweep, cut once, at some microseconds a prompt."""


def _rows(table: PromptTable, count: int, seed: int) -> Mapping[str, Int64]:
    """Part -> its rows."""
    key = table.fingerprint, count, seed
    if key not in _cuts:
        held_out = np.array(held_out_rows(table.texts(), count, seed), np.int64)
        rest = np.setdiff1d(np.arange(len(table), dtype=np.int64), held_out, assume_unique=True)
        _cuts[key] = {"train": rest, "heldout": held_out}
    return _cuts[key]
