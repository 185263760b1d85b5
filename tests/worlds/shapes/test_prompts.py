from __future__ import annotations

import pickle

import pytest

from prdp.worlds.shapes.grammar import caption, parse
from prdp.worlds.shapes.prompts import ShapesPrompts
from prdp.worlds.shapes.split import SPLITS, is_held_out


@pytest.mark.parametrize("split", SPLITS)
def test_items(split: str) -> None:
    prompts = ShapesPrompts(split, 2000, seed=1)
    items = [prompts[i] for i in range(len(prompts))]
    assert len(items) == len({text for text, _ in items}) == 2000
    for text, metadata in items:
        scene = parse(text)
        count = len(scene.objects)
        assert caption(scene) == text
        assert is_held_out(scene) == (split == "heldout")
        assert metadata == {
            "objects": count,
            "split": split,
            "category": {1: "1 object", 2: "2 objects", 3: "3 objects"}[count],
        }
    assert prompts[-1] == items[-1]


def test_order_is_a_function_of_the_arguments() -> None:
    first, second, other = (ShapesPrompts("train", 300, seed) for seed in (0, 0, 1))
    assert [first[i] for i in range(300)] == [second[i] for i in range(300)]
    assert [first[i] for i in range(300)] != [other[i] for i in range(300)]
    assert pickle.loads(pickle.dumps(first))[7] == first[7]


def test_built_on_first_use() -> None:
    assert len(ShapesPrompts("train", 1_000_000)) == 1_000_000


def test_errors() -> None:
    with pytest.raises(ValueError, match="split is 'val', expected one of train, heldout"):
        ShapesPrompts("val")
    for size in (0, -1, 10**9):
        with pytest.raises(ValueError, match=f"size is {size}, expected 1 to"):
            ShapesPrompts("train", size)
    with pytest.raises(ValueError, match="seed is -1"):
        ShapesPrompts("train", 10, -1)
    with pytest.raises(IndexError, match="index 10 is outside a data set of 10 prompts"):
        ShapesPrompts("train", 10)[10]
