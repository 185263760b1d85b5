"""Centered reward distillation against its authors' code, and against PRDP's loss, of which it is a variant."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from golden import GROUPS, SIZE, STEPS, batch, evaluate
from stub_policy import SCHEDULER, StubPolicy, stub_rollout

from prdp.config import LearnerConfig
from prdp.diffusion.process import denoising_error, squared_distance
from prdp.diffusion.variance_preserving import build_transitions
from prdp.learners import build_learner
from prdp.objectives import Coefficients, build_objective

IMAGES, DRAWS, SHAPE = 6, 2, (2, 2, 2)


def on_a_flow(**knobs: float) -> tuple[Coefficients, np.ndarray]:
    """Loss at outputs near the target, and its gradient by those of the policy, [IMAGES, DRAWS, *SHAPE]."""
    rng = np.random.default_rng(3)
    clean, noise = (torch.from_numpy(rng.normal(size=shape)) for shape in ((IMAGES, *SHAPE), (IMAGES, DRAWS, *SHAPE)))
    output, old, reference = (torch.from_numpy(rng.normal(size=(IMAGES, DRAWS, *SHAPE))) for _ in range(3))
    target = noise - clean[:, None]
    old = target + 0.5 * old
    output, reference = (old + 0.2 * output).requires_grad_(), old + 0.1 * reference

    def error(found: torch.Tensor) -> torch.Tensor:
        return denoising_error(found.flatten(0, 1), target.flatten(0, 1), adaptive_weight=True).view(IMAGES, DRAWS)

    distance = squared_distance(output.flatten(0, 1), reference.flatten(0, 1)).view(IMAGES, DRAWS)
    channels = {"denoising": -error(output), "kl_ref": distance}
    data = {
        "denoising_old": -error(old).numpy(),
        "rewards": np.array([0.5, 1.25, -0.25, 0.1, 0.3, 0.9]),
        "group_ids": np.repeat([0, 1], 3),
    }
    objective = build_objective({"name": "crd", "std": "none", "advantage_clip": 1.0, **knobs})
    result = objective.coefficients({name: channels[name].detach().numpy() for name in objective.channels}, data)
    sum((torch.from_numpy(table) * channels[name]).sum() for name, table in result.tables.items()).backward()
    assert output.grad is not None
    return result, output.grad.numpy()


@pytest.mark.parametrize(
    ("knobs", "numbers"),
    [
        (
            {"kl": 0.0},
            (0.05841348949131512, 0.8560078741226255, 0.002469731604873379, 0.004538111100452967),
        ),
        (
            {"kl": 0.1, "kl_least": 1e-4},
            (0.06068989791504037, 0.8617489418003202, 0.002434654588552903, 0.0047322732910147405),
        ),
        (
            {"beta": 0.3, "kl": 0.1, "kl_least": 0.1},
            (0.1999915884181042, 0.8285450195215313, 0.0006708355327697533, 0.005643855758124409),
        ),
    ],
)
def test_crd_equals_the_authors_code(knobs: dict[str, float], numbers: tuple[float, ...]) -> None:
    """Numbers of their trainer in Flow-Factory (5/2026) in float64, each group a gathered batch of its own."""
    result, gradient = on_a_flow(**knobs)
    found = result.loss, np.abs(gradient).sum(), gradient[0, 0, 0, 0, 0], gradient[5, 1, 1, 0, 1]
    assert found == pytest.approx(numbers, rel=1e-9)


@pytest.mark.parametrize("beta", [0.2, 3.0])
def test_with_one_draw_it_is_prdp_of_clipped_advantages(beta: float) -> None:
    """The mean over all pairs of squared differences is twice the variance, but for B / (B - 1)."""
    arrays = batch()
    ratios = arrays["log_ratio_old_policy"][:, :1]
    arrays |= {"denoising": ratios, "denoising_old": 0 * ratios, "log_ratio": ratios}
    found = evaluate("crd", arrays, beta=beta, advantage_clip=4.0, std="none", kl=0.0)
    predicted = {**arrays, "rewards": centred(arrays["rewards"]) / 8.0}
    prdp = evaluate("prdp", predicted, beta=beta, clip_range=None)
    share = 4.0 * beta * (SIZE - 1) / (2 * SIZE)
    assert found.loss == pytest.approx(share * prdp.loss, rel=1e-9)
    np.testing.assert_allclose(found.tables["denoising"], share * prdp.tables["log_ratio"], atol=1e-12)
    assert found.metrics["prediction_size"] == pytest.approx(prdp.metrics["prediction_size"], rel=1e-9)


def test_where_predictions_are_right_the_kl_alone_pulls() -> None:
    arrays = batch()
    good = centred(arrays["rewards"]) / 8.0
    offsets = np.repeat([[0.3], [-2.0], [0.0]], SIZE, 0) + np.arange(STEPS)
    right = np.repeat(good[:, None], STEPS, 1) / 0.7 + offsets
    arrays |= {"denoising": right, "denoising_old": 0 * right}
    result = evaluate("crd", arrays, beta=0.7, advantage_clip=4.0, std="none", kl=0.2, kl_least=0.1)
    np.testing.assert_allclose(result.tables["denoising"], 0.0, atol=1e-12)
    weights = np.repeat(0.1 + 0.1 * (good + 0.5)[:, None], STEPS, 1)
    np.testing.assert_allclose(result.tables["kl_ref"], weights / weights.size)
    assert result.metrics["prediction_size"] == pytest.approx(1.0)


def test_tied_groups_are_held_at_the_old_policy() -> None:
    arrays = batch()
    arrays["rewards"][:SIZE] = 0.5
    result = evaluate("crd", arrays)
    assert result.metrics["groups_tied"] == 1.0
    ratios = (arrays["denoising"] - arrays["denoising_old"])[:SIZE]
    pull = 2 * 5.0 * (ratios - ratios.mean(0)) / arrays["denoising"].size
    np.testing.assert_allclose(result.tables["denoising"][:SIZE], pull, rtol=1e-9)
    all_tied = evaluate("crd", {**arrays, "rewards": np.ones(GROUPS * SIZE)})
    assert all_tied.metrics == {"groups_tied": 3.0, "prediction_size": 0.0}


class Guided(StubPolicy):
    """Guidance multiplies its output."""

    def output(self, latents: torch.Tensor, times: torch.Tensor, conditions: Any, scale: float, *rest: Any) -> Any:
        return scale * super().output(latents, times, conditions, scale, *rest)


def test_the_kl_is_to_the_reference_as_guidance_makes_it() -> None:
    """Of the reference's output s, an output of s and no move yet: the KL of guidance w is (w - 1)^2 mean(s^2)."""
    found = []
    for guidance in (None, 1.0, 2.0, 4.0):
        policy, transitions = Guided(), build_transitions(SCHEDULER, steps=4)
        knobs = {"name": "crd", "draws": 3, "kl_guidance": guidance}
        learner = build_learner(policy, transitions, 1.0, LearnerConfig(mode="full"), knobs, 5)
        found.append(learner.update(stub_rollout(policy, transitions)))
    for metrics, excess in zip(found, (0, 0, 1, 9), strict=True):
        assert metrics["kl_ref"] == pytest.approx(excess * found[2]["kl_ref"])
        assert metrics["logratio_old_policy"] == 0.0, "the old policy is guided as the sampler is"
        assert metrics["loss"] > found[0]["loss"] or not excess
    assert found[2]["kl_ref"] > 0


def centred(rewards: np.ndarray) -> np.ndarray:
    return rewards - np.repeat(rewards.reshape(GROUPS, SIZE).mean(1), SIZE)
