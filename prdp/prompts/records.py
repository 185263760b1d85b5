"""Prompts from records: which column is the prompt, which the category, which others travel along."""

from __future__ import annotations

import datetime
import decimal
import math
from collections.abc import Mapping, Sequence
from typing import Any

from prdp.prompts.options import check_text, check_texts
from prdp.prompts.table import Row
from prdp.support.suggest import did_you_mean

USUAL_NAMES = ("prompt", "caption", "text")
"""Where the prompt is looked for, in any case of letters, when no column is named."""


class Columns:
    """The choice of columns of one source.

    Args:
        prompt: the prompt's column; None takes the only one among `USUAL_NAMES`.
        category: the column that becomes `category` in the metadata.
        metadata: columns that travel along under their own names; 'all' takes every column but the prompt's.

    Raises:
        ValueError: names that are no text, or `metadata` that is neither a list of them nor 'all'.
    """

    def __init__(self, prompt: str | None, category: str | None, metadata: str | Sequence[str]) -> None:
        check_text("prompt_column", prompt)
        check_text("category_column", category)
        if isinstance(metadata, str) and metadata != "all":
            raise ValueError(f"metadata_columns is {metadata!r}, expected a list of columns, or all")
        if not isinstance(metadata, str):
            check_texts("metadata_columns", metadata)
        self.prompt, self.category = prompt, category
        self.metadata: str | tuple[str, ...] = metadata if isinstance(metadata, str) else tuple(metadata)
        self._unseen = {self.category, *(() if self.metadata == "all" else self.metadata)} - {None}

    @property
    def key(self) -> list[Any]:
        """What the choice adds to a cache key."""
        return [self.prompt, self.category, self.metadata]

    def check(self, where: str, available: Sequence[str]) -> None:
        """Fix the prompt's column and look for the others, for sources whose columns are known beforehand.

        Raises:
            ValueError: a column that is not there, with those that are.
        """
        self.find_prompt(where, available)
        for wanted in self.wanted(available):
            _need(where, wanted, available)
            count = available.count(wanted)
            if count > 1:
                raise ValueError(f"{where}: there are {count} columns '{wanted}', expected one")

    def find_prompt(self, where: str, available: Sequence[str]) -> str:
        """The prompt's column among the available ones; found once and kept.

        Raises:
            ValueError: it is not there, or none is named and not exactly one of the usual names is.
        """
        if self.prompt is None:
            usual = [name for name in available if name.lower() in USUAL_NAMES]
            if len(usual) != 1:
                raise ValueError(
                    f"{where}: prompt_column must name the prompt's column; there are {', '.join(available) or 'none'}"
                )
            self.prompt = usual[0]
        _need(where, self.prompt, available)
        return self.prompt

    def wanted(self, available: Sequence[str]) -> list[str]:
        """The columns to read, the prompt's first."""
        others = available if self.metadata == "all" else self.metadata
        names = [self.prompt, *([self.category] if self.category else []), *others]
        return list(dict.fromkeys(name for name in names if name is not None))

    def row(self, record: Mapping[str, Any], place: str) -> Row:
        """The row of a record; metadata that a record lacks is left out of its row.

        Raises:
            ValueError: it lacks the prompt, has one that is not text, or holds what JSON cannot; by place and column.
        """
        prompt = self.find_prompt(place, list(record))
        names = [name for name in record if name != prompt] if self.metadata == "all" else self.metadata
        metadata = {}
        for name in names:
            if name in record:
                try:
                    metadata[name] = plain(record[name], f"{place}: column '{name}'")
                except RecursionError:
                    raise ValueError(f"{place}: column '{name}' is nested too deeply to travel as metadata") from None
        if self.category is not None and record.get(self.category) is not None:
            metadata["category"] = str(record[self.category])
        if self._unseen:
            self._unseen -= record.keys()
        if record[prompt] is not None and not isinstance(record[prompt], str):
            raise ValueError(f"{place}: the prompt is {record[prompt]!r:.80}, expected text in column '{prompt}'")
        return Row(record[prompt], metadata, place)

    def check_seen(self, where: str, available: Sequence[str]) -> None:
        """After the last record: every named column must have been in some of them.

        Raises:
            ValueError: naming the first that was not.
        """
        for name in sorted(name for name in self._unseen if name):
            _need(where, name, [key for key in available if key != name])


def plain(value: Any, where: str) -> Any:
    """The value as JSON can hold it: dates as ISO text, decimals as numbers, NaN and infinities as null.

    Raises:
        ValueError: bytes and other things that JSON cannot hold, such as pictures; a decimal of more digits than a
            float keeps.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, decimal.Decimal):
        number = float(value)
        if value.is_finite() and decimal.Decimal(repr(number)) != value:
            raise ValueError(f"{where} holds the decimal {value!s:.80}, expected one of at most 15 digits")
        return plain(number, where)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {str(key): plain(item, where) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, where) for item in value]
    raise ValueError(
        f"{where} holds {type(value).__name__} {value!r:.40}, which cannot travel as metadata, expected what JSON can "
        "hold; leave the column out"
    )


def _need(where: str, name: str, available: Sequence[str]) -> None:
    if name not in available:
        raise ValueError(
            f"{where}: there is no column '{name}'; there are {', '.join(available) or 'none'}"
            f"{did_you_mean(name, available)}"
        )
