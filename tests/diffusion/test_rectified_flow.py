"""Samplers of rectified flows against their authors' pointwise formulas, diffusers' scheduler and known grids."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchLCMScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from prdp.config import SamplerConfig
from prdp.diffusion.rectified_flow import RectifiedFlow, dynamic_shift, flow_sigmas, flow_transitions

STATIC: dict[str, Any] = {"num_train_timesteps": 1000, "shift": 3.0}
DYNAMIC: dict[str, Any] = {"num_train_timesteps": 1000, "shift": 3.0, "use_dynamic_shifting": True}
LINSPACE = flow_sigmas(STATIC, 10, grid="linspace")
Step = Callable[[torch.Tensor, torch.Tensor, float, float, float], tuple[torch.Tensor, float]]


def flow_sde(x: torch.Tensor, v: torch.Tensor, t: float, u: float, a: float) -> tuple[torch.Tensor, float]:
    """The drift of the SDE with s(t) = a sqrt(t / (1 - t)), term by term."""
    below = 1 - (LINSPACE[1] if t == 1 else t)
    s, dt = a * math.sqrt(t / below), u - t
    return x + (v + s**2 / (2 * t) * (x + (1 - t) * v)) * dt, s * math.sqrt(-dt)


def dance_sde(x: torch.Tensor, v: torch.Tensor, t: float, u: float, a: float) -> tuple[torch.Tensor, float]:
    """The ODE's step, and a score term of weight eta^2 / 2: the score is -(x - (1 - t) x_0) / t^2."""
    dt = u - t
    clean = x - t * v
    score = -(x - clean * (1 - t)) / t**2
    return x + dt * v - 0.5 * a**2 * score * dt, a * math.sqrt(-dt)


def cps(x: torch.Tensor, v: torch.Tensor, t: float, u: float, a: float) -> tuple[torch.Tensor, float]:
    """Clean estimate and noise estimate mixed anew, of which a part is drawn."""
    clean, noise = x - t * v, x + (1 - t) * v
    return (1 - u) * clean + u * math.cos(a * math.pi / 2) * noise, u * math.sin(a * math.pi / 2)


def edm_churn(x: torch.Tensor, v: torch.Tensor, t: float, u: float, a: float) -> tuple[torch.Tensor, float]:
    clean, noise = x - t * v, x + (1 - t) * v
    kept = 1 / (1 + a)
    return (1 - u) * clean + u * kept * noise, u * math.sqrt(1 - kept**2)


@pytest.mark.parametrize(
    ("kind", "eta", "formula"),
    [
        ("flow_sde", 0.7, flow_sde),
        ("flow_sde", 0.9, flow_sde),
        ("dance_sde", 0.3, dance_sde),
        ("cps", 0.8, cps),
        ("cps", 1.0, cps),
        ("edm_churn", 0.0025, edm_churn),
    ],
)
def test_steps_equal_their_formulas_and_keep_quiet_ones_on_the_ode(kind: str, eta: float, formula: Step) -> None:
    table = flow_transitions(LINSPACE, kind=kind, eta=eta)
    generator = torch.Generator().manual_seed(0)
    for step in range(10):
        x, v = torch.randn(2, 3, 4, 2, 2, generator=generator, dtype=torch.float64)
        mean, std = formula(x, v, LINSPACE[step], LINSPACE[step + 1], eta)
        torch.testing.assert_close(table.mean(step, x, v), mean, rtol=1e-12, atol=1e-12)
        assert table.sigma[step] == pytest.approx(std, rel=1e-12, abs=1e-15)
        quiet = table.coefficients(step, np.zeros(3, np.bool_))
        assert quiet == (1.0, pytest.approx(LINSPACE[step + 1] - LINSPACE[step]), 0.0)
    assert len(table.noisy) == (9 if kind in ("cps", "edm_churn") else 10)


def test_churn_is_another_way_to_say_the_level_of_cps() -> None:
    level = 2 / math.pi * math.acos(1 / 1.0025)
    assert level == pytest.approx(0.0450, abs=5e-5)
    cps_table, churn = (
        flow_transitions(LINSPACE, kind=kind, eta=eta) for kind, eta in (("cps", level), ("edm_churn", 0.0025))
    )
    np.testing.assert_allclose(cps_table.sigma, churn.sigma, rtol=1e-10)
    np.testing.assert_allclose(cps_table.output_coef, churn.output_coef, rtol=1e-10)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("grid", ["scheduler", "linspace"])
def test_euler_steps_equal_diffusers(grid: str, shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(7, sigmas=list(np.linspace(1, 1 / 7, 7)) if grid == "linspace" else None)
    sampler = SamplerConfig(kind="euler", steps=7, timestep_spacing=grid)
    table = RectifiedFlow(scheduler.config).transitions(sampler)
    np.testing.assert_array_equal(1000 * table.times.astype(np.float32), scheduler.timesteps.numpy())
    x = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    for step, timestep in enumerate(scheduler.timesteps):
        v = torch.sin(3 * x)
        expected = scheduler.step(v, timestep, x).prev_sample
        x = table.mean(step, x, v)
        torch.testing.assert_close(x, expected, rtol=1e-6, atol=1e-6)
    assert not len(table.noisy)


def test_grids_are_those_of_the_pipelines() -> None:
    own = flow_sigmas(STATIC, 10)
    np.testing.assert_allclose(own, [1, 0.960, 0.913, 0.858, 0.790, 0.707, 0.602, 0.465, 0.278, 0.0089, 0], atol=6e-4)
    np.testing.assert_allclose(
        LINSPACE, [1, 0.964, 0.923, 0.875, 0.818, 0.75, 0.667, 0.563, 0.429, 0.25, 0], atol=6e-4
    )
    np.testing.assert_array_equal(flow_sigmas(DYNAMIC, 10, grid="linspace", shift=3.0), LINSPACE)
    # The step before the last of Stable Diffusion 3's own grid is what CPS learns worst on.
    assert flow_transitions(own, kind="cps", eta=0.8).sensitivity[8] == pytest.approx(1038, rel=0.01)
    assert flow_transitions(own, kind="flow_sde", eta=0.7).sensitivity.max() == pytest.approx(3.1, rel=0.02)


def test_consistency_sampling_of_a_flow_is_cps_with_fresh_noise_alone() -> None:
    scheduler = FlowMatchLCMScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=np.linspace(1, 0.25, 4).tolist())
    sigmas = scheduler.sigmas.double().numpy()
    table = flow_transitions(sigmas, kind="cps", eta=1.0)
    generator = torch.Generator().manual_seed(0)
    for step, timestep in enumerate(scheduler.timesteps):
        x, output, noise = torch.randn(3, 2, 4, 4, 4, generator=generator)
        draw = "diffusers.schedulers.scheduling_flow_match_lcm.randn_tensor"
        with patch(draw, lambda *args, noise=noise, **kwargs: noise):
            expected = scheduler.step(output, timestep, x).prev_sample
        ours = table.mean(step, x, output) + float(table.sigma[step]) * noise
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match=r"kind is 'consistency', .*sampling of a flow is sampler=cps sampler.eta=1$"):
        flow_transitions(sigmas, kind="consistency", eta=1.0)


@pytest.mark.parametrize(("side", "mu"), [(512, 0.63), (1024, 1.15)])
def test_dynamic_shift_grows_with_the_image(side: int, mu: float) -> None:
    tokens = (side // 16) ** 2
    assert dynamic_shift(DYNAMIC, tokens) == pytest.approx(calculate_shift(tokens), rel=1e-12)
    assert dynamic_shift(DYNAMIC, tokens) == pytest.approx(mu, abs=0.005)
    sigmas = flow_sigmas(DYNAMIC, 4, grid="linspace", tokens=tokens)
    given = np.array([1, 0.75, 0.5, 0.25])
    expected = math.exp(calculate_shift(tokens)) / (math.exp(calculate_shift(tokens)) + 1 / given - 1)
    np.testing.assert_allclose(sigmas, [*expected, 0], rtol=1e-6)


def test_noised_latents_are_told_clean_again() -> None:
    process = RectifiedFlow(STATIC)
    latents, noise = torch.randn(2, 3, 4, 2, 2, dtype=torch.float64)
    times = np.array([1.0, 0.4, 0.01])
    noised, velocity = process.noised(latents, times, noise)
    torch.testing.assert_close(noised[1], 0.6 * latents[1] + 0.4 * noise[1])
    torch.testing.assert_close(process.clean(noised, times, velocity), latents)
    assert [process.time_at(quantile) for quantile in (0.0, 0.25, 0.75)] == [1.0, 0.75, 0.25]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "ddim"}, "sampler.kind is 'ddim', expected one of flow_sde, dance_sde, cps, edm_churn, euler"),
        ({"eta": 0.0}, "sampler.eta is 0.0, expected more than 0"),
        ({"eta": 1.5}, "sampler.eta is 1.5, expected at most 1 for sampler.kind=cps"),
        ({"deterministic_final_steps": 10}, "sampler.deterministic_final_steps is 10, expected 0 to 9"),
        ({"timestep_spacing": "trailing"}, "sampler.timestep_spacing is 'trailing', expected one of scheduler, linsp"),
        ({"steps": 0}, "sampler.steps is 0, expected 1 to 1000"),
        ({"shift": 0.0}, "sampler.shift is 0.0, expected more than 0"),
    ],
)
def test_bad_settings_are_named(change: dict[str, Any], message: str) -> None:
    settings = SamplerConfig(**{"kind": "cps", "eta": 0.8, "steps": 10, **change})
    with pytest.raises(ValueError, match=message):
        RectifiedFlow(STATIC).transitions(settings)


def test_schedulers_of_another_process_are_refused() -> None:
    with pytest.raises(ValueError, match="stochastic_sampling is true"):
        flow_sigmas({**STATIC, "stochastic_sampling": True}, 4)
    with pytest.raises(ValueError, match="number of image tokens is not known"):
        flow_sigmas(DYNAMIC, 4)


def test_pictures_too_large_for_a_dynamic_shift_are_told_by_their_size() -> None:
    for tokens in (10**6, 10**7):
        with pytest.raises(ValueError, match=rf"for pictures of {tokens} image tokens \(model\.height, model\.width\)"):
            flow_sigmas({"use_dynamic_shifting": True}, 4, tokens=tokens)
