"""An endless, shuffled, resumable stream over a prompt source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from prdp.types import Int64, PromptBatch


class PromptSource(Protocol):
    """Random access to prompts with their metadata.

    A source may also have `fingerprint`, a text that changes with its content; `key`, of the configuration where it
    stands, if that is not prompts.train or prompts.heldout; `texts()`, an iterator over all prompts
    in order; `is_disjoint(other)`, whether it is known without looking that no prompt is in both; and, when a pass is
    more than every prompt once, `pass_length` and `pass_order` as `MixturePrompts` has them.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[str, Mapping[str, Any]]: ...


class PromptStream:
    """Every prompt once per pass, each pass in an order of its own.

    Args:
        source: of at least one prompt.
        seed: with the number of the pass, decides its order.
        shuffle: False keeps the source's order.
        cursor: prompts already handed out; the stream goes on exactly there.

    Attributes:
        pass_length: prompts in one pass.

    Raises:
        ValueError: an empty source or a negative cursor.
    """

    def __init__(self, source: PromptSource, seed: int, shuffle: bool = True, cursor: int = 0) -> None:
        if len(source) == 0:
            raise ValueError(f"prompt source {type(source).__name__} is empty")
        if cursor < 0:
            raise ValueError(f"prompt cursor is {cursor}, expected 0 or more")
        self._source, self._seed, self._shuffle = source, seed, shuffle
        self.pass_length = pass_length(source)
        self.cursor = cursor
        self._pass = -1
        self._order: Int64 = np.empty(0, np.int64)

    def next(self, count: int, epoch: int) -> PromptBatch:
        """The next `count` prompts as the batch of an epoch; advances the cursor."""
        batch = self.peek(count, epoch)
        self.cursor += count
        return batch

    def peek(self, count: int, epoch: int = 0) -> PromptBatch:
        """What `next` would give, with the cursor left where it is."""
        return prompts_at(self._source, [self._index(self.cursor + i) for i in range(count)], epoch)

    def _index(self, position: int) -> int:
        number, place = divmod(position, self.pass_length)
        if number != self._pass:
            self._pass = number
            self._order = pass_order(self._source, self._seed, number, self._shuffle)
        return int(self._order[place])


def pass_length(source: PromptSource) -> int:
    """Prompts in one pass: all of the source, unless it says otherwise."""
    return int(getattr(source, "pass_length", len(source)))


def pass_order(source: PromptSource, seed: int, number: int, shuffle: bool = True) -> Int64:
    """Int64 [pass_length]: the indices of pass `number` in order, a function of the arguments alone."""
    if hasattr(source, "pass_order"):
        return source.pass_order(seed, number, shuffle)
    if not shuffle:
        return np.arange(len(source), dtype=np.int64)
    return np.random.default_rng((seed, number)).permutation(len(source))


def prompts_at(source: PromptSource, indices: Sequence[int], epoch: int) -> PromptBatch:
    """The prompts at `indices` of a source as one batch."""
    pairs = [source[index] for index in indices]
    return PromptBatch(
        epoch, 0, tuple(text for text, _ in pairs), tuple(metadata for _, metadata in pairs), tuple(indices)
    )


def fixed_prompts(source: PromptSource, count: int, seed: int) -> PromptBatch:
    """`count` different prompts of a source, or all of a pass when it has fewer; always the same, the first ones of a
    longer draw.
    """
    order = dict.fromkeys(pass_order(source, seed, 0).tolist())
    return prompts_at(source, list(order)[:count], 0)


def source_texts(source: PromptSource) -> Iterator[str]:
    """All prompts in order, by the source's own quick way where it has one."""
    if hasattr(source, "texts"):
        yield from source.texts()
    else:
        for index in range(len(source)):
            yield source[index][0]


def fingerprint(source: PromptSource) -> str:
    """Changes with the source's content; empty for a source that has none."""
    return str(getattr(source, "fingerprint", ""))
