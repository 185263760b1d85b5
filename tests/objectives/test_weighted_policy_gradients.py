"""GRPO-Guard, Flow-DPPO and TempFlow-GRPO on transitions of Flow-SDE, against implementations of others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden import SIZE, batch, evaluate, numeric_tables

from prdp.diffusion.rectified_flow import flow_transitions
from prdp.diffusion.transitions import guarded_importance, kl, log_ratio
from prdp.diffusion.variance_preserving import build_transitions
from prdp.objectives import OBJECTIVES

SIGMAS, ETA = np.array([0.9, 0.6, 0.25, 0.0]), 0.7
TABLE = flow_transitions(SIGMAS, kind="flow_sde", eta=ETA, deterministic_final_steps=1)
IMAGES, STEPS, DIMS = 6, 2, 5
ADVANTAGES = np.array([1.2, -0.4, -0.8, 0.5, -1.1, 0.6])


def transitions() -> dict[str, np.ndarray]:
    """Arrays of 6 images, 2 steps with noise and 5 latent dims; d of each step is .004 of random size."""
    rng = np.random.default_rng(7)
    _, z, move = (torch.from_numpy(rng.normal(size=(IMAGES, STEPS, DIMS))) for _ in range(3))
    z, d = z.flatten(0, 1), 0.004 * move.flatten(0, 1)
    sigma = torch.from_numpy(np.tile(TABLE.sigma[:STEPS], IMAGES))
    found = {
        "log_importance": log_ratio(z, d),
        "guarded_importance": guarded_importance(z, d, sigma),
        "kl_old": kl(d),
        "kl_ref": torch.zeros(IMAGES * STEPS),
    }
    constants = {"step_size": TABLE.step_size[:STEPS], "noise_weight": TABLE.noise_weight[:STEPS]}
    return (
        {name: values.view(IMAGES, STEPS).double().numpy() for name, values in found.items()}
        | {name: np.tile(values, (IMAGES, 1)) for name, values in constants.items()}
        # Centred by one group and not scaled, they are the advantages.
        | {"rewards": ADVANTAGES, "group_ids": np.zeros(IMAGES, np.int64)}
    )


def gradient_by_means(table: np.ndarray, of: str) -> float:
    """Sum of absolute derivatives by the policy's means of every transition and dim."""
    rng = np.random.default_rng(7)
    _, z, move = (torch.from_numpy(rng.normal(size=(IMAGES, STEPS, DIMS))) for _ in range(3))
    sigma = torch.from_numpy(TABLE.sigma[:STEPS]).view(1, STEPS, 1)
    mean = (0.004 * move * sigma).requires_grad_()
    d = mean / sigma
    flat = (z.flatten(0, 1), d.flatten(0, 1))
    spread = sigma.expand(IMAGES, STEPS, 1).flatten()
    evidence = guarded_importance(*flat, spread) if of == "guarded_importance" else log_ratio(*flat)
    (evidence * torch.from_numpy(table).flatten()).sum().backward()
    assert mean.grad is not None
    return float(mean.grad.abs().sum())


def test_grpo_guard() -> None:
    """Numbers of verl-omni's loss (8/2026) in float64 on these transitions, a step at a time."""
    result = evaluate("grpo_guard", transitions(), clip_range=2e-3, std="none")
    assert result.loss == pytest.approx(-0.0013617147004755569, rel=1e-9)
    assert result.metrics == {"clipfrac": pytest.approx(1 / 6), "groups_tied": 0.0}
    table = result.tables["guarded_importance"]
    assert gradient_by_means(table, "guarded_importance") == pytest.approx(1.063180572227426, rel=1e-9)
    numeric = numeric_tables("grpo_guard", transitions(), clip_range=2e-3, std="none")["guarded_importance"]
    np.testing.assert_allclose(table, numeric, atol=1e-8)


def test_flow_dppo() -> None:
    """Numbers of the authors' loss (UniRL, 6/2026), and of verl-omni's, in float64."""
    result = evaluate("flow_dppo", transitions(), kl_threshold=8e-6, std="none")
    assert result.loss == pytest.approx(0.07505294372490094, rel=1e-9)
    assert result.metrics == {"masked": pytest.approx(1 / 3), "groups_tied": 0.0}
    assert gradient_by_means(result.tables["log_importance"], "log_importance") == pytest.approx(
        0.4076198770992198, rel=1e-9
    )
    assert not result.tables["kl_old"].any()


def test_what_flow_dppo_masks() -> None:
    arrays = {
        "log_importance": np.log([[1.1, 0.9, 1.1, 1.1], [1.1, 0.9, 0.9, 0.9]]),
        "kl_old": np.array([[0.2, 0.2, 0.1, 0.3], [0.2, 0.2, 0.1, 0.3]]),
        "rewards": np.array([1.0, -1.0]),
        "group_ids": np.zeros(2, np.int64),
    }
    result = evaluate("flow_dppo", arrays, kl_threshold=0.2, std="none")
    # Far, and the way that the advantage asks for: the first step of the first image, its last, the second of the
    # second image and its last.
    expected = np.array([[0.0, -0.9, -1.1, 0.0], [1.1, 0.0, 0.9, 0.0]]) / 8
    np.testing.assert_allclose(result.tables["log_importance"], expected, rtol=1e-12)
    assert result.loss == pytest.approx(expected.sum())
    assert result.metrics["masked"] == 0.5


@pytest.mark.parametrize("clip_range", [1e-3, None])
def test_tempflow_grpo_weighs_the_loss_after_the_clip(clip_range: float | None) -> None:
    """Each step's own loss of GRPO, times sigma_t sqrt(dt) over its mean; the KL is not weighted."""
    arrays = transitions() | {"kl_ref": np.random.default_rng(0).random((IMAGES, STEPS))}
    noise = ETA * np.sqrt(SIGMAS[:2] / (1 - SIGMAS[:2])) * np.sqrt(SIGMAS[:2] - SIGMAS[1:3])
    weights = noise / noise.mean()
    expected = 0.3 * arrays["kl_ref"].mean()
    for step in range(STEPS):
        one = {name: values[:, step : step + 1] if values.ndim == 2 else values for name, values in arrays.items()}
        expected += weights[step] * evaluate("grpo", one, clip_range=clip_range, beta=0.0).loss / STEPS
    result = evaluate("tempflow_grpo", arrays, clip_range=clip_range, beta=0.3)
    assert result.loss == pytest.approx(expected, rel=1e-12)
    numeric = numeric_tables("tempflow_grpo", arrays, clip_range=clip_range, beta=0.3)
    for channel, table in result.tables.items():
        np.testing.assert_allclose(table, numeric[channel], atol=1e-8)


def test_steps_tell_their_size_and_noise() -> None:
    np.testing.assert_allclose(TABLE.step_size, -np.diff(SIGMAS))
    assert TABLE.noise_weight[TABLE.noisy].mean() == pytest.approx(1.0)
    assert TABLE.noise_weight[-1] == 0.0
    scheduler = {
        "num_train_timesteps": 1000,
        "beta_start": 1e-4,
        "beta_end": 2e-2,
        "beta_schedule": "linear",
        "set_alpha_to_one": True,
        "steps_offset": 0,
        "prediction_type": "epsilon",
    }
    table = build_transitions(scheduler, steps=4)
    kept = np.cumprod(1.0 - np.linspace(1e-4, 2e-2, 1000))
    now, then = kept[table.times.astype(int)], np.append(kept[table.times.astype(int)[1:]], 1.0)
    ratio_change = np.sqrt(1 / now - 1) - np.sqrt(1 / then - 1)
    np.testing.assert_allclose(table.step_size, np.sqrt(then) * ratio_change, rtol=1e-6)


@pytest.mark.parametrize("name", [name for name, method in OBJECTIVES.items() if "drop_tied" in method.knobs])
def test_groups_without_spread_may_be_dropped(name: str) -> None:
    arrays = batch()
    arrays["rewards"][:SIZE] = 0.1
    kl = "kl" if "kl" in OBJECTIVES[name].knobs else "beta"
    result = evaluate(name, arrays, drop_tied=True, std="group", **{kl: 0.3})
    others = evaluate(name, {key: value[SIZE:] for key, value in arrays.items()}, std="group", **{kl: 0.3})
    assert result.loss == pytest.approx(others.loss, rel=1e-12)
    assert result.metrics["groups_tied"] == 1.0
    for channel, table in result.tables.items():
        assert not table[:SIZE].any()
        np.testing.assert_allclose(table[SIZE:], others.tables[channel], rtol=1e-12)
