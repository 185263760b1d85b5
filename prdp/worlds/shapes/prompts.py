"""Prompts of the shapes world as an indexable data set."""

from __future__ import annotations

from functools import lru_cache

from prdp.worlds.shapes.grammar import caption, count_prompts
from prdp.worlds.shapes.split import SPLITS, distinct_scenes

# Scenes are found by drawing until enough distinct ones have come; well below all of them, repeats stay rare.
MAX_SIZE = count_prompts() // 100


@lru_cache(maxsize=4)
def _captions(split: str, size: int, seed: int) -> tuple[tuple[str, int], ...]:
    """Caption and number of objects of each item. The checks of a run and the run itself ask for the same ones."""
    return tuple((caption(scene), len(scene.objects)) for scene in distinct_scenes(split, size, seed))


class ShapesPrompts:
    """`size` distinct captions of one split, in an order that depends only on the arguments.

    split: "train" or "heldout"; size: 1 to MAX_SIZE; seed >= 0. The captions are built on first use of an item.
    Raises ValueError for other arguments.
    """

    def __init__(self, split: str = "train", size: int = 100_000, seed: int = 0) -> None:
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}, expected one of {', '.join(SPLITS)}")
        if not 1 <= size <= MAX_SIZE:
            raise ValueError(f"size is {size}, expected 1 to {MAX_SIZE}")
        if seed < 0:
            raise ValueError(f"seed is {seed}, expected >= 0")
        self.split = split
        self.size = size
        self.seed = seed

    def __len__(self) -> int:
        return self.size

    def is_disjoint(self, other: object) -> bool:
        """Whether the other source has prompts of the other split, of which none is in this one."""
        return isinstance(other, ShapesPrompts) and other.split != self.split

    def __getitem__(self, i: int) -> tuple[str, dict[str, object]]:
        """The caption of item i and its metadata: objects (1 to 3), split, and category ("1 object" to "3 objects").

        A negative i counts from the end. Raises IndexError outside the data set.
        """
        if not -self.size <= i < self.size:
            raise IndexError(f"index {i} is outside a data set of {self.size} prompts")
        text, objects = _captions(self.split, self.size, self.seed)[i]
        category = "1 object" if objects == 1 else f"{objects} objects"
        return text, {"objects": objects, "split": self.split, "category": category}
