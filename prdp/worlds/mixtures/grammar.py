"""Prompts such as "mixture a3 b7 c1 d9 e0 f4", and the split that keeps combinations of attributes out of training."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from prdp.types import Int64

ATTRIBUTES = "abcdef"
VALUES = 10
SPLITS: tuple[str, ...] = ("train", "heldout")
_HELD_OUT_SUM = 3
_REST = VALUES ** (len(ATTRIBUTES) - 2)
_PATTERN = re.compile("mixture " + " ".join(f"{name}([0-9])" for name in ATTRIBUTES))
_PAIRS = {
    split: tuple(
        (a, b)
        for a in range(VALUES)
        for b in range(VALUES)
        if ((a + b) % VALUES == _HELD_OUT_SUM) == (split == "heldout")
    )
    for split in SPLITS
}


def caption(attributes: Sequence[int]) -> str:
    """The prompt of six values from 0 to 9."""
    return "mixture " + " ".join(f"{name}{value}" for name, value in zip(ATTRIBUTES, attributes, strict=True))


@lru_cache(maxsize=65536)
def parse(prompt: str) -> tuple[int, ...]:
    """The six values of a prompt.

    Raises:
        ValueError: not a prompt of this world.
    """
    match = _PATTERN.fullmatch(prompt)
    if match is None:
        raise ValueError(
            f"prompt {prompt!r} is outside the world of mixtures, expected one like 'mixture a3 b7 c1 d9 e0 f4'"
        )
    return tuple(int(value) for value in match.groups())


def parse_all(prompts: Sequence[str]) -> Int64:
    """The values of many prompts, int64 [n, 6]."""
    return np.array([parse(prompt) for prompt in prompts], np.int64).reshape(-1, len(ATTRIBUTES))


def is_held_out(attributes: Sequence[int]) -> bool:
    """Whether the first two values are one of the ten pairs that training never shows together."""
    return (attributes[0] + attributes[1]) % VALUES == _HELD_OUT_SUM


def count_prompts(split: str) -> int:
    """Distinct prompts of a split."""
    return len(_PAIRS[split]) * _REST


def prompt_at(split: str, index: int) -> str:
    """Prompt number `index` of a split, 0 to `count_prompts(split)` - 1."""
    pair, rest = divmod(index, _REST)
    return caption((*_PAIRS[split][pair], *(int(digit) for digit in f"{rest:0{len(ATTRIBUTES) - 2}d}")))
