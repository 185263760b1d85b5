"""Order, cursor and passes of the prompt stream; batches and their chunks."""

from __future__ import annotations

import pytest

from prdp.prompts.stream import PromptStream, fixed_prompts
from prdp.types import PromptBatch


class Numbers:
    """Prompts '0', '1', ..."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> tuple[str, dict[str, int]]:
        return str(index), {"index": index}


def test_every_prompt_once_a_pass_in_another_order_each_time() -> None:
    stream = PromptStream(Numbers(10), seed=1)
    first, second = stream.next(10, 0).texts, stream.next(10, 1).texts
    assert sorted(first) == sorted(second) == sorted(map(str, range(10)))
    assert first != second
    assert PromptStream(Numbers(10), seed=2).next(10, 0).texts != first


def test_batches_run_over_the_end_of_a_pass_and_the_cursor_resumes_exactly() -> None:
    whole = PromptStream(Numbers(7), seed=1)
    texts = [text for epoch in range(5) for text in whole.next(4, epoch).texts]
    assert sorted(texts[:7]) == sorted(texts[7:14]) == sorted(map(str, range(7)))
    again = PromptStream(Numbers(7), seed=1, cursor=12)
    assert list(again.next(8, 3).texts) == texts[12:20]
    assert again.cursor == 20


def test_without_shuffling_the_order_is_the_sources() -> None:
    batch = PromptStream(Numbers(3), seed=1, shuffle=False).next(5, 2)
    assert batch.texts == ("0", "1", "2", "0", "1")
    assert batch.metadata[2] == {"index": 2}
    assert batch.epoch == 2


def test_fixed_prompts_are_a_prefix_of_a_longer_draw() -> None:
    long, short = fixed_prompts(Numbers(50), 20, 3), fixed_prompts(Numbers(50), 5, 3)
    assert long.texts[:5] == short.texts
    assert len(fixed_prompts(Numbers(4), 20, 3)) == 4


def test_chunks_are_cut_by_size_alone() -> None:
    batch = PromptBatch(1, 0, tuple("abcde"), tuple({} for _ in range(5)))
    chunks = batch.chunks(2)
    assert [(chunk.offset, chunk.texts) for chunk in chunks] == [(0, ("a", "b")), (2, ("c", "d")), (4, ("e",))]
    with pytest.raises(ValueError, match="prompts_per_chunk must be at least 1, got 0"):
        batch.chunks(0)


def test_batches_know_where_their_prompts_stand_in_the_source() -> None:
    stream = PromptStream(Numbers(50), seed=1)
    batch = stream.next(6, 2)
    assert batch.texts == tuple(map(str, batch.indices))
    assert [chunk.indices for chunk in batch.chunks(4)] == [batch.indices[:4], batch.indices[4:]]
    assert stream.peek(3).indices == stream.next(3, 3).indices
    with pytest.raises(ValueError, match="2 texts but 1 indices"):
        PromptBatch(0, 0, ("a", "b"), ({}, {}), (1,))


def test_the_order_of_a_seed_stays() -> None:
    """Another order would change what a resumed run draws, and every recorded run."""
    assert PromptStream(Numbers(10), seed=0).next(10, 0).indices == (4, 6, 2, 7, 3, 5, 9, 0, 8, 1)
    assert PromptStream(Numbers(1_000_000), seed=0).next(4, 0).indices == (959233, 623842, 264558, 79733)


def test_empty_sources_and_bad_cursors_are_refused() -> None:
    with pytest.raises(ValueError, match="prompt source Numbers is empty"):
        PromptStream(Numbers(0), seed=0)
    with pytest.raises(ValueError, match="prompt cursor is -1"):
        PromptStream(Numbers(2), seed=0, cursor=-1)
