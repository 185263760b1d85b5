"""ROUGE-L against the package rouge-score and by brute force, and the pool against comparing with every text."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence

import pytest

from prdp.prompt_writers.rouge import SimilarityPool, longest_common, rouge_l, words_of


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ("A red fox sleeps in the snow.", "a red fox runs in the snow", 6 / 7),
        ("Two cats, one dog!", "one dog and two cats", 4 / 9),
        ("The cat's hat_and 3 bats", "the cat s hat and 3 bats", 1.0),
        ("a b c d e", "a b c d e f", 10 / 11),
        ("a small solid red circle on a white background", "a small solid blue circle on a white background", 8 / 9),
        ("a a a b", "b a a", 4 / 7),
        ("words", "", 0.0),
        ("!?", "!?", 0.0),
    ],
)
def test_values_of_the_package_rouge_score(left: str, right: str, expected: float) -> None:
    """Its fmeasure of rougeL, without stemming; version 0.1.2."""
    assert rouge_l(words_of(left), words_of(right)) == pytest.approx(expected, rel=1e-12)
    assert rouge_l(words_of(right), words_of(left)) == pytest.approx(expected, rel=1e-12)


def by_recursion(left: Sequence[str], right: Sequence[str]) -> int:
    @functools.cache
    def longest(i: int, j: int) -> int:
        if i == len(left) or j == len(right):
            return 0
        if left[i] == right[j]:
            return 1 + longest(i + 1, j + 1)
        return max(longest(i + 1, j), longest(i, j + 1))

    return longest(0, 0)


def test_subsequences_by_recursion() -> None:
    rng = random.Random(0)
    for _ in range(60):
        left, right = (rng.choices("abcde", k=rng.randint(0, 80)) for _ in range(2))
        assert longest_common(left, right) == by_recursion(left, right)


def test_letters_of_any_script_are_words() -> None:
    assert words_of("Ein Bär, zwei_Füchse: 3 鳥!") == ["ein", "bär", "zwei", "füchse", "3", "鳥"]


def test_at_the_threshold_a_text_is_not_similar() -> None:
    pool = SimilarityPool(0.8)
    pool.add("a b c d e")
    assert pool.similar("a b c d x") is None, "its F is 0.8"
    pool.add("v w x y z z")
    assert pool.similar("v w x y z") == 1, "10 / 11"
    assert pool.similar("A, b. C d E!") == 0


def test_the_first_of_several_is_told_and_1_finds_none() -> None:
    pool, never = SimilarityPool(0.5), SimilarityPool(1.0)
    for text in ("one two three", "two three four", "one two three"):
        pool.add(text)
        never.add(text)
    assert pool.similar("two three") == 0
    assert never.similar("one two three") is None


@pytest.mark.parametrize("above", [0.3, 0.8, 0.95])
def test_the_pool_finds_what_comparing_with_every_text_finds(above: float) -> None:
    rng = random.Random(1)
    pool, texts, found = SimilarityPool(above), [""], 0
    pool.add("")
    for _ in range(400):
        text = " ".join(rng.choices("abcdefgh", k=rng.randint(1, 9)))
        if rng.random() < 0.4:
            text = " ".join(word for word in rng.choice(texts).split() if rng.random() < 0.9)
        scores = [rouge_l(words_of(text), words_of(other)) for other in texts]
        expected = next((number for number, score in enumerate(scores) if score > above), None)
        assert pool.similar(text) == expected
        found += expected is not None
        if expected is None:
            pool.add(text)
            texts.append(text)
    assert 50 < found < 350, "or the test says nothing"
