"""Curves of studies: what a seed that diverged, a longer run or a dearer update does to them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import pytest
import study_figures
import study_measures

from prdp.configuration.compose import Composer


def line(method: str, scores: list[float], rewards: list[float], **other: Any) -> dict[str, Any]:
    """A final run of 40 epochs in blocks of 10, evaluated every 20."""
    return {
        "method": method,
        "base": ["epochs=40", "updates_per_epoch=1"],
        "overrides": ["updates_per_epoch=10"],
        "budget": {"updates": 400, "forward_passes": 8_000_000, "backward_passes": 4_000_000},
        "curve": {
            "eval_epoch": [0, 20, 40][: len(scores)],
            "eval_score": scores,
            "epoch": [5.5, 15.5, 25.5, 35.5][: len(rewards)],
            "reward_mean": rewards,
            "seconds": [80.0],
        },
        **other,
    }


def test_an_epoch_costs_its_passes_and_its_share_of_the_seconds() -> None:
    whole, half = line("a", [0.0], [0.0] * 4), line("a", [0.0], [0.0] * 2, failed="ValueError")
    assert study_figures.epochs_of(whole) == 40, "the last override counts"
    assert study_figures.passes_per_epoch(whole) == pytest.approx((8 + 2 * 4) / 40)
    assert (study_figures.reached(whole), study_figures.reached(half)) == (40.0, 20.0)
    assert study_figures.seconds_per_epoch(half) == pytest.approx(80 / 20)


def test_a_seed_that_diverged_lies_at_the_floor_from_then_on() -> None:
    lines = [
        line("a", [0.0, 1.0, 2.0], [0.0, 1.0, 2.0, 3.0]),
        line("a", [0.0, 0.5], [0.0, 1.0], failed="ValueError"),
        line("a", [0.0, 0.8, -50.0], [0.0, 1.0, 2.0, float("nan")]),
    ]
    (curve,), floor = study_figures.held_out(lines, ["a", "none such"])
    assert floor == -1.0, "half as far below the start as the best is above it"
    assert (curve.x, curve.y) == ([0.0, 20.0, 40.0], [0.0, 0.8, -1.0])
    assert (curve.low, curve.high) == ([0.0, 0.5, -1.0], [0.0, 1.0, 2.0])
    (curve,) = study_figures.sampled_reward(lines, {"a": "A"})
    assert (curve.name, curve.y, curve.low) == ("A", [0.0, 1.0, 2.0, -1.5], [0.0, 1.0, -1.5, -1.5])


def test_passes_stretch_the_axis_and_a_single_seed_has_no_band() -> None:
    (curve,), _ = study_figures.held_out([line("a", [0.0, 1.0, 2.0], [0.0])], ["a"], study_figures.passes_per_epoch)
    assert curve.x == pytest.approx([0.0, 8.0, 16.0])
    assert curve.low is None


def test_the_frontier_is_above_all_and_joins_the_weights_of_the_kl() -> None:
    lines = [
        {"method": "a", "heldout": {"kl": 1.0, "reward": 0.2}},
        {"method": "a", "heldout": {"kl": 2.0, "reward": 0.4}},
        {"method": "a_strict", "heldout": {"kl": 0.5, "reward": 0.1}},
        {"method": "b", "heldout": {"kl": 3.0, "reward": -0.1}},
        {"method": "b_loose", "heldout": {"kl": 4.1, "reward": 9.0}},
        {"method": "c", "failed": "ValueError"},
    ]
    joined = {"a": ["a", "a_strict"], "b": ["b", "b_loose"], "c": ["c"]}
    axes = ("heldout.kl", "heldout.reward")
    bound, curve, point = study_figures.trade(lines, joined, axes, [(0.0, 0.0), (4.0, 1.0)])
    assert (bound.x, bound.y) == ([0.0, 4.0], [0.0, 1.0])
    assert (curve.x, curve.y) == (pytest.approx([0.5, 1.5]), pytest.approx([0.1, 0.3]))
    assert (point.name, point.x, point.y) == ("b", [3.0], [-0.1])
    *_, all_of_b = study_figures.trade(lines, joined, axes)
    assert all_of_b.x == [3.0, 4.1], "where no bound is known nothing lies beyond it"


def test_the_best_rewards_rise_with_the_kl_and_ever_slower() -> None:
    with Composer(["experiment=mixtures_large", "output_dir=none"]) as composer:
        bound = study_measures.best_rewards(composer.jobs()[0].config, [0.1, 0.5, 2.0, 1000.0])
    (kl, reward), *_ = bound
    assert kl == 0.0
    slopes = [(y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in pairwise(bound)]
    assert slopes == sorted(slopes, reverse=True)
    assert 2.0 < slopes[1] < 1000.0, "the slope of the frontier at an optimum is its weight"
    assert 0.5 < slopes[2] < 2.0
    assert bound[1][0] == pytest.approx(0.0, abs=1e-4) and bound[1][1] == pytest.approx(reward, abs=1e-2)


def test_panels_stand_side_by_side_in_one_file() -> None:
    series = study_figures.sampled_reward([line("a", [0.0], [0.0, 1.0])], {"a": "A"})
    picture = ElementTree.fromstring(study_figures.side_by_side([("left", series), ("right", series)], width=300))
    panels = [child.attrib for child in picture if child.tag.endswith("}svg")]
    assert [(panel["x"], panel["width"], panel["aria-label"]) for panel in panels] == [
        ("0", "300", "left"),
        ("300", "300", "right"),
    ]
    assert picture.attrib["viewBox"] == "0 0 600 260"
