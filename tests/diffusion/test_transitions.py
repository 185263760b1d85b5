"""The transition table against diffusers' schedulers, torch's normal distribution and known numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from prdp.diffusion.transitions import alphas_cumprod, build_transitions, log_ratio, reference_log_prob

SD = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "prediction_type": "epsilon",
}


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(("spacing", "steps"), [("leading", 50), ("leading", 8), ("trailing", 10), ("linspace", 8)])
@pytest.mark.parametrize("eta", [1.0, 0.4])
def test_ddim_steps_equal_diffusers(prediction: str, spacing: str, steps: int, eta: float) -> None:
    config: dict[str, Any] = {**SD, "prediction_type": prediction, "timestep_spacing": spacing}
    scheduler = DDIMScheduler(**config)
    # diffusers keeps its table in float32; in float64 the two can be compared to the last digits.
    scheduler.alphas_cumprod = torch.from_numpy(alphas_cumprod(config))
    scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    scheduler.set_timesteps(steps)
    table = build_transitions(config, steps=steps, eta=eta)
    np.testing.assert_array_equal(table.timesteps, scheduler.timesteps.numpy())
    generator = torch.Generator().manual_seed(0)
    for step, timestep in enumerate(scheduler.timesteps):
        x, output, noise = torch.randn(3, 2, 4, 4, 4, generator=generator, dtype=torch.float64)
        expected = scheduler.step(output, int(timestep), x, eta=eta, variance_noise=noise).prev_sample
        ours = table.mean(step, x, output) + float(table.sigma[step]) * noise
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [50, 8])
def test_ddpm_steps_equal_diffusers(steps: int) -> None:
    config = {key: value for key, value in SD.items() if key != "set_alpha_to_one"}
    scheduler = DDPMScheduler(**config, variance_type="fixed_small")
    scheduler.set_timesteps(steps)
    table = build_transitions(config, kind="ddpm", steps=steps)
    np.testing.assert_array_equal(table.timesteps, scheduler.timesteps.numpy())
    generator = torch.Generator().manual_seed(0)
    for step, timestep in enumerate(scheduler.timesteps):
        x, output = torch.randn(2, 2, 4, 4, 4, generator=generator)
        stepped = scheduler.step(output, int(timestep), x, generator=torch.Generator().manual_seed(step)).prev_sample
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(step))
        ours = table.mean(step, x, output) + float(table.sigma[step]) * noise
        torch.testing.assert_close(ours, stepped, rtol=1e-4, atol=2e-5)
    assert table.stochastic_steps == steps - 1


def test_eta_one_has_the_posterior_mean_of_ddpm() -> None:
    ddim, ddpm = build_transitions(SD, steps=50), build_transitions(SD, kind="ddpm", steps=50)
    np.testing.assert_allclose(ddim.sample_coef[:-1], ddpm.sample_coef[:-1], rtol=1e-12)
    np.testing.assert_allclose(ddim.output_coef[:-1], ddpm.output_coef[:-1], rtol=1e-12)


def test_sensitivity_of_the_paper_setting() -> None:
    table = build_transitions(SD, steps=50)
    at = dict(zip(table.timesteps.tolist(), table.sensitivity.tolist(), strict=True))
    for timestep, expected in {981: 0.26, 61: 0.57, 41: 1.03, 21: 10.7, 1: 1.01}.items():
        assert at[timestep] == pytest.approx(expected, rel=0.03)
    assert table.sigma[-1] == pytest.approx(0.0207, rel=0.01)


def test_deterministic_final_steps_are_ddim_without_noise() -> None:
    table = build_transitions(SD, steps=8, deterministic_final_steps=3)
    assert table.stochastic_steps == 5
    assert not table.sigma[5:].any()
    scheduler = DDIMScheduler(**SD)
    scheduler.set_timesteps(8)
    x, output = torch.randn(2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    for step in (5, 6, 7):
        expected = scheduler.step(output, int(scheduler.timesteps[step]), x, eta=0.0).prev_sample
        torch.testing.assert_close(table.mean(step, x, output), expected, rtol=1e-4, atol=2e-5)


def test_log_ratio_is_the_difference_of_gaussian_log_probs() -> None:
    generator = torch.Generator().manual_seed(2)
    mean, reference, x = torch.randn(3, 4, 2, 3, 3, generator=generator, dtype=torch.float64)
    sigma = torch.tensor([0.02, 0.1, 0.5, 1.0], dtype=torch.float64)
    column = sigma.view(-1, 1, 1, 1)
    z, d = (x - reference) / column, (mean - reference) / column

    def log_prob(at: torch.Tensor) -> torch.Tensor:
        return torch.distributions.Normal(at, column).log_prob(x).flatten(1).mean(1)

    torch.testing.assert_close(log_ratio(z, d), log_prob(mean) - log_prob(reference), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(reference_log_prob(z, sigma), log_prob(reference), rtol=1e-12, atol=1e-12)


def test_log_ratio_resolves_in_float32_what_a_difference_of_log_probs_cannot() -> None:
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(1, 4, 64, 64, generator=generator)
    d = 1e-4 * torch.randn(1, 4, 64, 64, generator=generator)
    exact = log_ratio(z.double(), d.double()).item()
    assert log_ratio(z, d).item() == pytest.approx(exact, rel=1e-3)
    sigma = torch.ones(1)
    naive = (reference_log_prob(z - d, sigma) - reference_log_prob(z, sigma)).item()
    assert abs(naive - exact) > 20 * abs(log_ratio(z, d).item() - exact)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "euler"}, "sampler.kind is 'euler', expected one of ddim, ddpm"),
        ({"steps": 0}, "sampler.steps is 0"),
        ({"steps": 2000}, "sampler.steps is 2000, expected 1 to 1000"),
        ({"spacing": "karras"}, "sampler.timestep_spacing is 'karras'"),
        ({"deterministic_final_steps": 50}, "deterministic_final_steps is 50, expected 0 to 49"),
        ({"kind": "ddpm", "eta": 0.5}, "belong to sampler.kind=ddim"),
    ],
)
def test_bad_samplers_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_transitions(SD, **{"steps": 50, **change})


def test_unknown_schedules_are_named() -> None:
    with pytest.raises(ValueError, match="beta_schedule is 'squaredcos_cap_v2'"):
        build_transitions({**SD, "beta_schedule": "squaredcos_cap_v2"}, steps=50)
    with pytest.raises(ValueError, match="prediction_type is 'flow'"):
        build_transitions({**SD, "prediction_type": "flow"}, steps=50)
