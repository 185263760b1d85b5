"""Equal and near prompts: normalisation, what is dropped for what, leakage, splits; MinHash against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from prdp.prompts import near_duplicates
from prdp.prompts.duplicates import Match, find_duplicates, find_leaks, held_out_rows, normalise
from prdp.prompts.near_duplicates import near_pairs, rows_per_band, shingles

LONG = "a detailed oil painting of an old lighthouse on a cliff above a stormy sea at night, by a famous painter"


def test_normalisation() -> None:
    assert normalise("  A Red—car,\tPARKED. ") == normalise("a red car parked") == "a red car parked"
    assert normalise("Cafe\u0301") == normalise("CAFÉ") == "café"
    assert normalise("ﬁsh №１") == "fish no1"
    assert normalise("!?  !") == "!? !"
    assert normalise("हिन्दी") == "हिन्दी"
    assert normalise("a 🐱!") == "a 🐱"


def test_each_dropped_prompt_names_one_that_stays() -> None:
    texts = [
        "a cat",
        LONG,
        "A cat.",
        "a dog",
        LONG.replace("old", "older"),
        "a cat",
        (LONG + "!").replace("old", "older"),
    ]
    matches, bounded = find_duplicates(texts)
    assert bounded == (0, 0)
    near = matches[1].similarity
    assert matches == [
        Match(2, 0, "normalised", 1.0),
        Match(4, 1, "near", near),
        Match(5, 0, "exact", 1.0),
        Match(6, 1, "near", near),
    ]
    assert 0.85 <= near < 1
    exact, _ = find_duplicates(texts, threshold=None)
    assert exact == [Match(2, 0, "normalised", 1.0), Match(5, 0, "exact", 1.0), Match(6, 4, "normalised", 1.0)]


def test_what_is_only_like_a_dropped_prompt_stays() -> None:
    """b is like a, c is like b but not like a: c stays."""
    words = [f"word{number:02}" for number in range(40)]
    a, b, c = (" ".join(words[start : start + 34]) for start in (0, 1, 2))
    pairs, _ = near_pairs([a, b, c], 0.9)
    assert [(left, right) for left, right, _ in pairs] == [(0, 1), (1, 2)]
    matches, _ = find_duplicates([a, b, c], 0.9)
    assert [(match.row, match.repeats) for match in matches] == [(1, 0)]


def test_short_prompts_that_differ_by_a_word_are_no_duplicates() -> None:
    texts = ["A red colored car.", "A blue colored car.", "Two cars on the street.", "Three cars on the street."]
    assert find_duplicates(texts)[0] == []


def test_near_pairs_are_those_of_brute_force() -> None:
    generator = np.random.default_rng(0)
    vocabulary = [f"{a}{b}" for a, b in itertools.product(("red", "old", "big", "wet"), ("cat", "dog", "sea", "sun"))]
    texts = []
    for _ in range(60):
        words = generator.choice(vocabulary, 30).tolist()
        texts.append(" ".join(words))
        for changes in (1, 2, 4):
            varied = list(words)
            for place in generator.integers(0, 30, changes):
                varied[place] = str(generator.choice(vocabulary))
            texts.append(" ".join(varied))
    texts = list(dict.fromkeys(texts))
    sets = [{f" {text} "[place : place + 5] for place in range(len(text) - 2)} for text in texts]
    expected = {}
    for left, right in itertools.combinations(range(len(texts)), 2):
        similarity = len(sets[left] & sets[right]) / len(sets[left] | sets[right])
        if similarity >= 0.8:
            expected[left, right] = similarity
    found = {(left, right): similarity for left, right, similarity in near_pairs(texts, 0.8)[0]}
    assert len(expected) > 80
    assert found.keys() <= expected.keys()
    assert len(found) >= 0.98 * len(expected)
    assert all(similarity == expected[pair] for pair, similarity in found.items())


def test_shingles_are_the_runs_of_bytes() -> None:
    assert shingles("abcabca").tolist() == sorted(
        int.from_bytes(run.encode()) for run in (" abca", "abcab", "bcabc", "cabca", "abca ")
    )
    assert len(shingles("a")) == len(shingles("")) == 1


def test_bands_find_a_pair_at_the_threshold_with_99_percent() -> None:
    for threshold in (0.5, 0.7, 0.85, 0.95):
        rows = rows_per_band(threshold)
        assert 1 - (1 - threshold**rows) ** 16 >= 0.99
    assert rows_per_band(0.95) == 8
    for threshold in (0, 1.1):
        with pytest.raises(ValueError, match=f"threshold is {threshold}, expected above 0"):
            near_pairs(["a", "b"], threshold)


def test_a_bounded_search_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [LONG.replace("night", f"night {number}") for number in range(10, 30)]
    every, unbounded = near_pairs(texts, 0.8)
    assert len(every) == 190
    assert unbounded == (0, 0)
    monkeypatch.setattr(near_duplicates, "MAX_BUCKET", 2)
    some, bounded = near_pairs(texts, 0.8)
    assert min(bounded) > 0
    assert set(some) < set(every)
    assert {(number, number + 1) for number in range(19)} <= {(left, right) for left, right, _ in some}


def test_leaks_name_the_most_similar_held_out_prompt() -> None:
    held_out = ["a cat", LONG, LONG.replace("old", "older"), "A CAT!"]
    texts = ["a dog", "a Cat", LONG.replace("old", "older").replace("famous", "famed"), LONG]
    matches, _ = find_leaks(texts, held_out)
    assert [(match.row, match.repeats, match.reason) for match in matches] == [
        (1, 0, "normalised"),
        (2, 2, "near"),
        (3, 1, "exact"),
    ]
    assert [match.row for match in find_leaks(texts, held_out, threshold=None)[0]] == [1, 3]
    assert find_leaks(["a dog"], held_out)[0] == []


def test_a_split_depends_on_texts_alone() -> None:
    texts = [f"prompt {number}" for number in range(1000)]
    rows = held_out_rows(texts, 100, seed=0)
    assert rows == sorted(rows)
    assert len(rows) == 100
    chosen = {texts[row] for row in rows}
    assert {texts[::-1][row] for row in held_out_rows(texts[::-1], 100, seed=0)} == chosen
    assert {texts[row] for row in held_out_rows(texts, 100, seed=1)} != chosen
    grown = [f"prompt {number}" for number in range(1100)]
    assert len(chosen & {grown[row] for row in held_out_rows(grown, 110, seed=0)}) > 90


def test_equal_prompts_go_to_one_side() -> None:
    texts = ["a cat", "A cat.", "a dog", "a fox"]
    for count in (1, 2, 3):
        chosen = set(held_out_rows(texts, count, seed=0))
        assert {0, 1} <= chosen or not {0, 1} & chosen
    for count in (0, 4):
        with pytest.raises(ValueError, match=f"{count} prompts to hold out, expected 1 to 3: there are 4"):
            held_out_rows(texts, count, seed=0)
    with pytest.raises(ValueError, match="none would be left"):
        held_out_rows(["a cat", "A cat"], 1, seed=0)
