"""What an objective gets of a weighted sum's terms, and what is told where there are none."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from stub_policy import SCHEDULER, StubPolicy, stub_rollout

from prdp.config import LearnerConfig
from prdp.configuration.bounds import objective_problems
from prdp.configuration.typed import typed
from prdp.diffusion.variance_preserving import build_transitions
from prdp.learners import build_learner
from prdp.learners.reward_terms import reward_terms
from prdp.rewards.weighted_sum import WeightedSum, optimised_terms

REDNESS = {"_target_": "prdp.rewards.redness.Redness"}
SUM: dict[str, Any] = {
    "_target_": "prdp.rewards.weighted_sum.WeightedSum",
    "terms": {
        "red": {"weight": 3.0, "watch": False, "reward": REDNESS},
        "seen": {"watch": True, "reward": REDNESS},
        "blue": {"weight": -0.5, "reward": REDNESS},
    },
}


def test_terms_and_weights_are_those_of_the_sum() -> None:
    weights = optimised_terms(SUM)
    assert weights == {"red": 3.0, "blue": -0.5}
    assert optimised_terms(REDNESS) is None
    images = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 3), np.uint8)
    rewards, parts = WeightedSum(SUM["terms"]).score(images, ["x"] * 12, [{}] * 12)
    rollout = stub_rollout(StubPolicy(), build_transitions(SCHEDULER, steps=2)).scored(rewards, parts)
    found = reward_terms(rollout, weights)
    np.testing.assert_array_equal(found["reward_terms"], np.stack([parts["red"], parts["blue"]], 1))
    np.testing.assert_allclose(found["reward_terms"] @ found["reward_weights"], rewards)


def test_what_is_wrong_with_terms_is_told() -> None:
    rollout = stub_rollout(StubPolicy(), build_transitions(SCHEDULER, steps=2))
    some = rollout.scored(np.zeros(12), {"red": np.zeros(12), "watch/blue": np.zeros(12)})
    with pytest.raises(ValueError, match="no scores of the reward's term 'blue', it has sub-scores red, watch/blue"):
        reward_terms(some, {"red": 1.0, "blue": 2.0})
    wrong = np.zeros(12)
    wrong[[2, 5]] = np.nan
    with pytest.raises(ValueError, match="2 of 12 scores of the reward's term 'red' are not finite"):
        reward_terms(dataclasses.replace(some, sub_scores={"red": wrong}), {"red": 1.0})
    table = build_transitions(SCHEDULER, steps=2)
    learner = build_learner(
        StubPolicy(), table, 1.0, LearnerConfig(mode="full"), {"name": "grpo", "normalise_terms": True}
    )
    with pytest.raises(ValueError, match="takes the terms of a reward apart, and no terms are known"):
        learner.update(rollout)


def test_validate_refuses_terms_of_a_reward_without() -> None:
    content = {
        "output_dir": "x",
        "reward": REDNESS,
        "prompts": {"train": {"_target_": "a.b"}, "heldout": {"_target_": "a.b"}},
        "objective": {"name": "grpo"},
    }
    assert objective_problems(typed(content)) == []
    apart = {"name": "ddpo", "normalise_terms": True}
    assert objective_problems(typed({**content, "reward": SUM, "objective": apart})) == []
    config = typed(content)
    config.objective = apart
    [told] = objective_problems(config)
    assert told == (
        "objective.normalise_terms=true: reward._target_=prdp.rewards.redness.Redness must be "
        "prdp.rewards.weighted_sum.WeightedSum, as reward=weighted_sum is"
    )
