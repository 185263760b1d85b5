"""Weighted mixtures: shares, passes, order, metadata, and weights that are refused."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from prdp.prompts import build_prompts
from prdp.prompts.animals import ANIMALS, AnimalPrompts
from prdp.prompts.mixture import MixturePrompts
from prdp.prompts.stream import PromptStream, fixed_prompts


class Letters:
    """Prompts 'a0', 'a1', ..."""

    def __init__(self, letter: str, size: int) -> None:
        self.letter, self.size = letter, size
        self.fingerprint = f"{letter}{size}"

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[str, dict[str, Any]]:
        return f"{self.letter}{index}", {"number": index}


def test_without_weights_a_pass_holds_every_prompt_once() -> None:
    mixture = MixturePrompts(a=Letters("a", 7), b=Letters("b", 2))
    assert (len(mixture), mixture.pass_length, mixture.draws) == (9, 9, {"a": 7, "b": 2})
    everything = sorted([f"a{i}" for i in range(7)] + ["b0", "b1"])
    stream = PromptStream(mixture, seed=3)
    first, second = stream.next(9, 0).texts, stream.next(9, 1).texts
    assert sorted(first) == sorted(second) == everything
    assert first != second


def test_weights_are_shares_of_every_pass() -> None:
    mixture = MixturePrompts(weights={"a": 3, "b": 1}, size=12, a=Letters("a", 7), b=Letters("b", 5))
    assert mixture.draws == {"a": 9, "b": 3}
    stream = PromptStream(mixture, seed=0)
    for epoch in range(4):
        assert Counter(text[0] for text in stream.next(12, epoch).texts) == {"a": 9, "b": 3}


@pytest.mark.parametrize("shuffle", [True, False])
def test_no_prompt_comes_again_before_all_of_its_source_have_come(shuffle: bool) -> None:
    mixture = MixturePrompts(weights={"a": 3, "b": 1}, size=12, a=Letters("a", 7), b=Letters("b", 5))
    drawn = np.concatenate([mixture.pass_order(4, number, shuffle) for number in range(35)])
    for low, size in ((0, 7), (7, 5)):
        counts = np.bincount(drawn[(drawn >= low) & (drawn < low + size)] - low, minlength=size)
        assert counts.max() == counts.min()  # 35 passes draw 315 = 45 * 7 and 105 = 21 * 5


def test_without_shuffling_the_sources_alternate_evenly() -> None:
    mixture = MixturePrompts(weights={"a": 2, "b": 1}, size=6, a=Letters("a", 7), b=Letters("b", 5))
    stream = PromptStream(mixture, seed=0, shuffle=False)
    assert stream.next(12, 0).texts == ("a0", "b0", "a1", "a2", "b1", "a3", "a4", "b2", "a5", "a6", "b3", "a0")


def test_the_cursor_resumes_exactly() -> None:
    mixture = MixturePrompts(weights={"a": 3, "b": 1}, a=Letters("a", 7), b=Letters("b", 5))
    whole = PromptStream(mixture, seed=1).next(50, 0).indices
    assert PromptStream(mixture, seed=1, cursor=17).next(33, 0).indices == whole[17:]


def test_metadata_tells_the_source() -> None:
    inner = MixturePrompts(x=Letters("x", 1), y=Letters("y", 1))
    mixture = MixturePrompts(a=Letters("a", 2), nested=inner)
    assert mixture[1] == ("a1", {"source": "a", "number": 1})
    assert mixture[-1] == ("y0", {"source": "y", "number": 0})
    with pytest.raises(IndexError, match="index 4 is outside a mixture of 4 prompts"):
        mixture[4]


def test_fixed_prompts_are_all_different() -> None:
    mixture = MixturePrompts(weights={"a": 50, "b": 1}, size=51, a=Letters("a", 7), b=Letters("b", 5))
    texts = fixed_prompts(mixture, 20, seed=0).texts
    assert len(texts) == len(set(texts)) == 8


def test_the_fingerprint_follows_sources_and_shares() -> None:
    def print_of(size: int, **weights: float) -> str:
        return MixturePrompts(weights=weights or None, a=Letters("a", size), b=Letters("b", 5)).fingerprint

    assert print_of(7) == print_of(7, a=7, b=5)
    assert len({print_of(7), print_of(8), print_of(7, a=1, b=1)}) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs sources"),
        ({"a": Letters("a", 0)}, "mixture source 'a' holds no prompts"),
        ({"a": "text"}, "mixture source 'a' is 'text', expected a section"),
        ({"a": Letters("a", 3), "weights": {"a": 0}}, "weight of 'a' is 0, expected a number above 0"),
        ({"a": Letters("a", 3), "weights": {"a": -1.5}}, "weight of 'a' is -1.5, expected a number above 0"),
        ({"a": Letters("a", 3), "weights": {"a": "much"}}, "weight of 'a' is much"),
        ({"a": Letters("a", 3), "weights": {"b": 1}}, "given for b, the sources are a"),
        ({"a": Letters("a", 9), "b": Letters("b", 9), "weights": {"a": 999, "b": 1}}, "'b' gets none of the 18 draws"),
    ],
)
def test_mixtures_that_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MixturePrompts(**arguments)


def test_a_mixture_from_a_configuration_and_the_animals() -> None:
    animals = {"_target_": "prdp.prompts.animals.AnimalPrompts", "template": "a {}"}
    mixture = build_prompts(
        "prompts.train", {"_target_": f"{MixturePrompts.__module__}.MixturePrompts", "pets": animals}
    )
    assert mixture[0] == ("a cat", {"source": "pets", "category": "cat"})
    assert len(mixture) == len(set(ANIMALS)) == 45
    assert AnimalPrompts()[-1] == ("A painting of a kangaroo", {"category": "kangaroo"})
