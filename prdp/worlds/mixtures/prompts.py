"""Prompts of the world of mixtures as an indexable data set."""

from __future__ import annotations

import numpy as np

from prdp.worlds.mixtures.grammar import SPLITS, count_prompts, parse, prompt_at


class GaussianMixturePrompts:
    """`size` distinct prompts of one split, in an order that depends only on the arguments.

    Args:
        split: "train" (900,000 prompts) or "heldout" (100,000).
        size: 1 to all of the split.
        seed: which ones, at least 0.

    Raises:
        ValueError: other arguments.
    """

    def __init__(self, split: str = "train", size: int = 100_000, seed: int = 0) -> None:
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}, expected one of {', '.join(SPLITS)}")
        if not 1 <= size <= count_prompts(split):
            raise ValueError(f"size is {size}, expected 1 to {count_prompts(split)}")
        if seed < 0:
            raise ValueError(f"seed is {seed}, expected >= 0")
        self.split = split
        self._numbers = np.random.default_rng(seed).permutation(count_prompts(split))[:size]

    def __len__(self) -> int:
        return len(self._numbers)

    def is_disjoint(self, other: object) -> bool:
        """Whether the other source has prompts of the other split, of which none is in this one."""
        return isinstance(other, GaussianMixturePrompts) and other.split != self.split

    def __getitem__(self, i: int) -> tuple[str, dict[str, object]]:
        """The prompt of item i and its metadata: split, and category, the value of its first attribute."""
        text = prompt_at(self.split, int(self._numbers[i]))
        return text, {"split": self.split, "category": f"a{parse(text)[0]}"}
