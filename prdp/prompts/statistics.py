"""What a prompt set is like, in numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prdp.prompts.duplicates import normalise

QUANTILES = (0.0, 0.5, 0.9, 0.99, 1.0)
_COUNTED = ("category", "source")


@dataclass(frozen=True)
class Statistics:
    """Counts over a prompt set.

    Attributes:
        prompts: in all.
        distinct, distinct_normalised: different texts, as they are and after `normalise`.
        characters, words: quantiles at QUANTILES.
        metadata: key -> prompts that have it.
        values: 'category' and 'source' -> value -> prompts, most frequent first.
        questions: questions that travel with the prompts.
    """

    prompts: int
    distinct: int
    distinct_normalised: int
    characters: tuple[float, ...]
    words: tuple[float, ...]
    metadata: Mapping[str, int]
    values: Mapping[str, Mapping[str, int]]
    questions: int


def describe(texts: Sequence[str], metadata: Iterable[Mapping[str, Any]]) -> Statistics:
    """Statistics of prompts and their metadata, of equal length and at least one."""
    keys: Counter[str] = Counter()
    values: dict[str, Counter[str]] = {name: Counter() for name in _COUNTED}
    questions = 0
    for entry in metadata:
        keys.update(entry.keys())
        for name in _COUNTED:
            if name in entry:
                values[name][str(entry[name])] += 1
        asked = entry.get("questions")
        questions += len(asked) if isinstance(asked, list) else 0
    return Statistics(
        len(texts),
        len(set(texts)),
        len({normalise(text) for text in texts}),
        quantiles([len(text) for text in texts]),
        quantiles([len(text.split()) for text in texts]),
        dict(keys.most_common()),
        {name: dict(counter.most_common()) for name, counter in values.items() if counter},
        questions,
    )


def quantiles(lengths: Sequence[int]) -> tuple[float, ...]:
    """Quantiles at QUANTILES, each a length that occurs."""
    return tuple(float(value) for value in np.quantile(lengths, QUANTILES, method="lower"))


def quantiles_text(values: Sequence[float]) -> str:
    """'least 1, 50% 9, 90% 20, 99% 40, most 77' from what `quantiles` gives."""
    names = ["least", *(f"{quantile:.0%}" for quantile in QUANTILES[1:-1]), "most"]
    return ", ".join(f"{name} {value:,.0f}" for name, value in zip(names, values, strict=True))
