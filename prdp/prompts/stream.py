"""An endless, shuffled, resumable stream over a prompt source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from prdp.types import Int64, PromptBatch


class PromptSource(Protocol):
    """Random access to prompts with their metadata."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[str, Mapping[str, Any]]: ...


class PromptStream:
    """Every prompt once per pass, each pass in an order of its own.

    Args:
        source: of at least one prompt.
        seed: with the number of the pass, decides its order.
        shuffle: False keeps the source's order.
        cursor: prompts already handed out; the stream goes on exactly there.

    Raises:
        ValueError: an empty source or a negative cursor.
    """

    def __init__(self, source: PromptSource, seed: int, shuffle: bool = True, cursor: int = 0) -> None:
        if len(source) == 0:
            raise ValueError(f"prompt source {type(source).__name__} is empty")
        if cursor < 0:
            raise ValueError(f"prompt cursor is {cursor}, expected 0 or more")
        self._source, self._seed, self._shuffle = source, seed, shuffle
        self.cursor = cursor
        self._pass = -1
        self._order: Int64 = np.empty(0, np.int64)

    def next(self, count: int, epoch: int) -> PromptBatch:
        """The next `count` prompts as the batch of an epoch; advances the cursor."""
        batch = prompts_at(self._source, [self._index(self.cursor + i) for i in range(count)], epoch)
        self.cursor += count
        return batch

    def _index(self, position: int) -> int:
        size = len(self._source)
        if not self._shuffle:
            return position % size
        if position // size != self._pass:
            self._pass = position // size
            self._order = np.random.default_rng((self._seed, self._pass)).permutation(size)
        return int(self._order[position % size])


def prompts_at(source: PromptSource, indices: list[int], epoch: int) -> PromptBatch:
    """The prompts at `indices` of a source as one batch."""
    pairs = [source[index] for index in indices]
    return PromptBatch(epoch, 0, tuple(text for text, _ in pairs), tuple(metadata for _, metadata in pairs))


def fixed_prompts(source: PromptSource, count: int, seed: int) -> PromptBatch:
    """`count` prompts of a source, or all when it has fewer; always the same, the first ones of a longer draw."""
    order = np.random.default_rng((seed, 0)).permutation(len(source))[:count]
    return prompts_at(source, [int(index) for index in order], 0)
