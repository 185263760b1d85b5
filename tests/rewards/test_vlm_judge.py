"""A vision-language model as judge, played by a server that knows the right answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_judge import judge

from prdp.rewards import build_reward
from prdp.rewards.judge_answers import answer_object, criteria_scores
from prdp.rewards.scoring import RewardFaultError, RewardUnavailableError, scored
from prdp.rewards.vlm_judge import VlmJudge, pairs_of
from prdp.support.side_by_side import results_of


def greys(*levels: int) -> np.ndarray:
    return np.stack([np.full((6, 5, 3), level, np.uint8) for level in levels])


def marks(pictures: list[np.ndarray], text: str) -> str:
    """Points by brightness, in words around the JSON."""
    level = float(pictures[0].mean())
    return f'Sure!\n```json\n{{"alignment": {1 + 9 * level / 255}, "quality": 10}}\n```'


def test_points_of_criteria_become_rewards_and_sub_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRDP_JUDGE_KEY", "sesame")
    with judge(marks) as (url, asked):
        reward = VlmJudge(url, model="vlm")
        values, parts = reward.score(greys(0, 51, 255), ["a", "b", "c"], [{}] * 3)
        np.testing.assert_allclose(parts["alignment"], [0.0, 0.2, 1.0])
        np.testing.assert_allclose(values, [0.5, 0.6, 1.0])
        assert {request["authorization"] for request in asked} == {"Bearer sesame"}
        assert {request["model"] for request in asked} == {"vlm"}
        texts = sorted(request["messages"][0]["content"][-1]["text"] for request in asked)
        assert "The prompt: a\n" in texts[0] and "from 1 to 10" in texts[0] and "alignment, quality" in texts[0]
        reward.score(greys(0, 51), ["a", "b"], [{}] * 2)
        assert len(asked) == 3, "the same question is asked once"
        reward.score(greys(0), ["another"], [{}])
        assert len(asked) == 4


def test_answers_are_kept_for_later_runs_that_ask_the_same(tmp_path: Path) -> None:
    with judge(marks) as (url, asked):
        first = VlmJudge(url, cache=str(tmp_path / "kept"))
        expected = first.score(greys(10, 20), ["a", "b"], [{}] * 2)[0]
        again = VlmJudge(url, cache=str(tmp_path / "kept"), max_requests=1)
        np.testing.assert_array_equal(again.score(greys(10, 20), ["a", "b"], [{}] * 2)[0], expected)
        assert len(asked) == 2
        for file in (tmp_path / "kept").rglob("*.json"):
            file.write_text("[1")
        VlmJudge(url, cache=str(tmp_path / "kept")).score(greys(10), ["a"], [{}])
        assert len(asked) == 3, "a damaged file is asked about again"
        other = VlmJudge(url, cache=str(tmp_path / "kept"), high=20.0)
        assert other.version != first.version and again.version == first.version


def test_a_group_is_seen_as_a_whole() -> None:
    def ranks(pictures: list[np.ndarray], text: str) -> str:
        order = np.argsort(np.argsort([one.mean() for one in pictures]))
        return json.dumps({"scores": [float(one) + 1 for one in order]})

    with judge(ranks) as (url, asked):
        reward = VlmJudge(url, mode="group", low=1, high=3)
        values, parts = reward.score(greys(9, 200, 50, 7, 8, 6), ["a"] * 3 + ["b"] * 3, [{}] * 6)
        np.testing.assert_allclose(values, [0.0, 1.0, 0.5, 0.5, 1.0, 0.0])
        assert parts == {} and len(asked) == 2


def test_pairs_are_won_whoever_is_shown_first(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[tuple[float, float]] = []

    def brighter(pictures: list[np.ndarray], text: str) -> str:
        first, second = (float(one.mean()) for one in pictures)
        seen.append((first, second))
        return json.dumps({"better": "equal" if first == second else "first" if first > second else "second"})

    with judge(brighter) as (url, _):
        reward = VlmJudge(url, mode="pairs", opponents=3)
        values, _ = reward.score(greys(1, 2, 3, 3, 7), ["a"] * 4 + ["alone"], [{}] * 5)
    np.testing.assert_allclose(values, [0.0, 1 / 3, 2.5 / 3, 2.5 / 3, 0.5])
    assert len(seen) in (5, 6), "every pair once; pictures that are alike make the same question"
    assert "the mean over a prompt's pictures is one half" in caplog.text


def test_opponents_are_shared_out_evenly() -> None:
    for size, opponents in ((8, 2), (7, 3), (2, 5), (1, 1)):
        pairs = pairs_of(range(size), opponents)
        counts = np.bincount(np.array(pairs, int).ravel(), minlength=size) if pairs else np.zeros(size)
        assert len({frozenset(pair) for pair in pairs}) == len(pairs)
        assert counts.min() == counts.max() == min(2 * opponents, size - 1)
    first = np.bincount([one for one, _ in pairs_of(range(8), 2)], minlength=8)
    assert first.sum() == 16 and first.max() <= 4


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ('{"alignment": 3}', "has points for alignment, must be for alignment, quality"),
        ('{"alignment": 3, "quality": "good"}', "gives quality 'good', must be a number"),
        ('{"alignment": 3, "quality": 11}', "has 11 points, must be from 1 to 10"),
        ('{"alignment": 3, "quality": NaN}', "has nan points"),
        ('{"alignment": 3, "qual', "begins no whole JSON object"),
        ('{"a": 1} {"b": 2}', "has 2 JSON objects"),
        ("eight out of ten", "has no JSON objects"),
        ("{", r"is cut off after 256 tokens \(max_tokens\)"),
    ],
)
def test_half_an_answer_is_refused(said: str, expected: str) -> None:
    with judge(lambda pictures, text: said) as (url, asked):
        with pytest.raises(RewardFaultError, match=rf"asked 2 times about prompt 'a thing'.*{expected}"):
            scored(VlmJudge(url, asks=2), greys(5), ["a thing"], [{}])
        assert "could not be used" in asked[1]["messages"][0]["content"][-1]["text"]


def test_an_answer_that_is_mended_counts() -> None:
    def at_second(pictures: list[np.ndarray], text: str) -> str:
        return marks(pictures, text) if "could not be used" in text else "well"

    with judge(at_second) as (url, asked):
        assert VlmJudge(url).score(greys(255), ["a"], [{}])[0].tolist() == [1.0]
        assert len(asked) == 2


def test_the_budget_is_kept_and_a_server_that_is_away_is_another_matter() -> None:
    with judge(marks) as (url, asked):
        with pytest.raises(RewardFaultError, match="max_requests=2 are spent"):
            scored(VlmJudge(url, max_requests=2, at_once=1), greys(1, 2, 3), ["a", "b", "c"], [{}] * 3)
        assert len(asked) == 2
    with pytest.raises(RewardUnavailableError):
        scored(VlmJudge(url, retries=0, timeout_seconds=5), greys(1), ["a"], [{}])
    with judge(lambda pictures, text: (400, "no")) as (url, _), pytest.raises(RewardFaultError, match="400"):
        scored(VlmJudge(url), greys(1), ["a"], [{}])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"mode": "triples"}, "mode=triples: must be one of single, group, pairs"),
        ({"low": 5, "high": 5}, "high=5: must be above low=5"),
        ({"criteria": ["a", "a"]}, "criteria"),
        ({"rubric": "how good?"}, r"a text with \{prompt\} in it"),
        ({"rubric": "{prompt} {colour}"}, "'colour' cannot be filled in"),
        ({"rubric": "@/nowhere/rubric.txt"}, "cannot be read"),
        ({"url": "ftp://x"}, "must be http"),
        ({"max_requests": 0}, "max_requests=0"),
        ({"cache": f"{__file__}/kept"}, "cache=.*test_vlm_judge.py is a file, must be a folder"),
    ],
)
def test_mistakes_are_told_at_the_start(arguments: dict[str, Any], expected: str) -> None:
    section = {"_target_": "prdp.rewards.vlm_judge.VlmJudge", "url": "http://127.0.0.1:1/v1"}
    with pytest.raises(ValueError, match=expected):
        VlmJudge.check(**{"url": "http://127.0.0.1:1/v1", **arguments})
    assert build_reward(section).name == "vlm_judge", "nobody is asked at the start"


def test_a_rubric_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "rubric.txt").write_text('Points for {prompt}: {{"alignment": 1, "quality": 1}}')
    with judge(marks) as (url, asked):
        VlmJudge(url, rubric=f"@{tmp_path}/rubric.txt").score(greys(1), ["x"], [{}])
        assert asked[0]["messages"][0]["content"][-1]["text"] == 'Points for x: {"alignment": 1, "quality": 1}'


def test_braces_in_words_and_nesting_without_end() -> None:
    assert answer_object('I say {"a": {"b": 1}}.') == {"a": {"b": 1}}
    with pytest.raises(ValueError, match="no whole JSON object"):
        answer_object('{"a":' + "[" * 100_000)


def test_no_call_begins_after_a_failure() -> None:
    begun = []

    def call(number: int) -> int:
        begun.append(number)
        if number == 1:
            raise OSError("away")
        return number

    assert results_of(lambda number: number * 2, range(5), 3) == [0, 2, 4, 6, 8]
    with pytest.raises(OSError, match="away"):
        results_of(call, range(50), 1)
    assert max(begun) < 50 and begun[:2] == [0, 1]


def test_a_line_for_each_criterion_is_an_answer_too() -> None:
    lines = "A cat (animal): 1\nAlignment Score (1-5): 3.5\n**Coherence: 4**\nstyle score (1-5): 2.\n"
    assert criteria_scores(lines, ["alignment", "coherence", "style"]) == [3.5, 4.0, 2.0]
    for answer, message in [
        (lines.replace("style score (1-5): 2.", "style score (1-5): "), "no lines with points for style"),
        (lines + "Style: 3\n", "2 lines with points for style"),
        (lines + '{"style": 3}', "has points for style, must be for alignment"),
        ("Stylish: 3", "has no JSON objects"),
    ]:
        with pytest.raises(ValueError, match=message):
            criteria_scores(answer, ["alignment", "coherence", "style"])
