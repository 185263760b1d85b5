"""Cells without a coefficient take no pass, and the gradient stays what it was."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from stub_policy import SCHEDULER, StubPolicy, stub_rollout

from prdp.config import LearnerConfig
from prdp.diffusion.variance_preserving import build_transitions
from prdp.evidence import Trajectory
from prdp.learners import build_learner
from prdp.learners.learner import Learner
from prdp.learners.used_cells import mentioned, strongest, used
from prdp.objectives import Method
from prdp.types import Rollout

STEPS, IMAGES = 4, 12
TRANSITIONS = build_transitions(SCHEDULER, steps=STEPS)


def tied_rollout(version: int, tied: int = 2) -> Rollout:
    """Three groups of four images; the rewards of the last ones are all equal."""
    rollout = stub_rollout(StubPolicy(), TRANSITIONS)
    assert rollout.rewards is not None
    rewards = rollout.rewards.copy()
    rewards[IMAGES - 4 * tied :] = 0.25
    return dataclasses.replace(rollout, rewards=rewards, weights_version=version)


def build(objective: dict[str, Any], **learner: Any) -> Learner:
    policy = StubPolicy()
    config = LearnerConfig(mode="full", **{"max_grad_norm": float("inf"), "microbatch": 5, **learner})
    return build_learner(policy, TRANSITIONS, 1.0, config, objective)


def updated(learner: Learner, rollout: Rollout, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, float], list[int]]:
    """Metrics, and cells that went through the network without and with gradient."""
    policy: Any = learner.engine.policy
    counts, output = [0, 0], policy.output

    def counting(latents: torch.Tensor, *arguments: Any) -> torch.Tensor:
        counts[torch.is_grad_enabled()] += len(latents)
        return output(latents, *arguments)

    monkeypatch.setattr(policy, "output", counting)
    return learner.update(rollout), counts


def gradients(learner: Learner) -> dict[str, torch.Tensor]:
    policy: Any = learner.engine.policy
    return {name: value.grad for name, value in policy.weights.parameters.items()}


@pytest.mark.parametrize("microbatch", [5, 64])
@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize(
    "objective",
    [
        {"name": "prdp", "beta": 0.5, "clip_range": 1e-2},
        {"name": "grpo", "beta": 0.0},
        {"name": "grpo", "drop_tied": True, "beta": 2.0},
        {"name": "flow_dppo", "beta": 0.0},
    ],
)
def test_groups_whose_rewards_are_equal_take_no_pass(
    objective: dict[str, Any], version: int, microbatch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollout = tied_rollout(version)
    learner = build(objective, microbatch=microbatch)
    metrics, counts = updated(learner, rollout, monkeypatch)
    assert counts == [16 * (version == 1 and microbatch == 5), 16]
    monkeypatch.setattr(Trajectory, "skips_unused", False)
    monkeypatch.setattr("prdp.learners.learner.strongest", lambda tables, cells, share: (cells, 0.0))
    whole = build(objective, microbatch=microbatch)
    expected, counts = updated(whole, rollout, monkeypatch)
    assert counts[1] == 48
    for name, gradient in gradients(whole).items():
        assert (gradients(learner)[name] - gradient).abs().max() <= 1e-12 * gradient.abs().max()
    for name in ("loss", "groups_tied", "clipfrac", "grad_norm"):
        assert metrics.get(name, 0.0) == pytest.approx(expected.get(name, 0.0), rel=1e-9), name


@pytest.mark.parametrize("objective", [{"name": "grpo"}, {"name": "rebel"}])
def test_losses_that_learn_from_ties_keep_them(objective: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A KL holds images whatever their rewards are; REBEL regresses the differences of ties to 0."""
    assert updated(build(objective), tied_rollout(1), monkeypatch)[1] == [48, 48]


def test_where_all_rewards_are_equal_all_cells_are_taken_and_the_gradient_is_0(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = build({"name": "prdp"})
    metrics, counts = updated(learner, tied_rollout(0, tied=3), monkeypatch)
    assert counts == [0, 48]
    assert metrics["grad_norm"] == 0


def test_the_ratio_guard_still_sees_the_others() -> None:
    rollout = tied_rollout(0)
    ratios = rollout.stored["log_ratio"].copy()
    ratios[1, 2] += 0.01
    with pytest.raises(RuntimeError, match=r"worst at image 1, step 2"):
        build({"name": "prdp"}).update(rollout.storing(log_ratio=ratios))


def hinge(log_importance: torch.Tensor, rewards: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
    return (rewards[:, None] * (log_importance - 0.3).relu()).mean(), {}


def test_a_hinge_that_small_evidence_does_not_reach_is_found() -> None:
    objective = build({"name": None, "_target_": f"{__name__}.hinged"}).objective
    sampled, data = objective.evidence.stored(tied_rollout(0)), {"rewards": np.where(np.arange(IMAGES) < 4, 1.0, 0.0)}
    cells = used(objective, objective.channels, data, sampled, (IMAGES, STEPS))
    assert cells.tolist() == list(range(4 * STEPS))


hinged = Method(hinge)


def test_the_values_that_are_tried_lie_around_what_the_policy_that_sampled_has() -> None:
    """Far from a clip's centre nothing would have a coefficient."""
    centre = np.full((2, 3), 5.0)

    def tables(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        near = np.abs(values["log_ratio"] - centre) < 1e-3
        return {"log_ratio": near * [[1.0], [0.0]]}

    assert mentioned(tables, {"log_ratio": centre}).tolist() == [0, 1, 2]
    assert mentioned(tables, {"log_ratio": 0 * centre}).tolist() == [0, 1, 2, 3, 4, 5], "none: all"


def test_the_strongest_cells_and_what_is_lost() -> None:
    tables = {"a": np.array([[4.0, -1.0], [0.0, 0.5]]), "b": np.array([[0.0, 0.0], [0.0, 2.0]])}
    cells = np.arange(4)
    kept, lost = strongest(tables, cells, 0.0)
    assert (kept.tolist(), lost) == ([0, 1, 3], 0.0)
    kept, lost = strongest(tables, cells, 0.25)
    assert kept.tolist() == [0, 3]
    assert lost == pytest.approx(1.0 / 5.5)
    assert strongest({"a": np.zeros((2, 2))}, cells, 0.5)[0].tolist() == [0, 1, 2, 3]


def test_what_is_left_out_for_its_small_coefficient_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    rollout = tied_rollout(0, tied=0)
    whole = build({"name": "prdp"})
    whole.update(rollout)
    learner = build({"name": "prdp"}, least_coefficient=0.3)
    metrics, counts = updated(learner, rollout, monkeypatch)
    assert 0 < counts[1] < 48
    assert 0 < metrics["coefficients_left_out"] < 0.3
    one, other = (torch.cat([value.flatten() for value in gradients(some).values()]) for some in (whole, learner))
    assert torch.cosine_similarity(one, other, dim=0) > 0.9
