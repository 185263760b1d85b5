"""The transition table against diffusers' schedulers, torch's normal distribution and known numbers."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, LCMScheduler

from prdp.diffusion.transitions import log_ratio
from prdp.diffusion.variance_preserving import alphas_cumprod, build_transitions, train_timesteps

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


SPACINGS = ["leading", "trailing", "linspace"]
PREDICTIONS = ["epsilon", "v_prediction", "sample"]


def exact(scheduler: Any, config: dict[str, Any]) -> Any:
    """diffusers keeps its table in float32; in float64 the two can be compared to the last digits."""
    scheduler.alphas_cumprod = torch.from_numpy(alphas_cumprod(config))
    scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    if isinstance(scheduler, DDIMScheduler):
        scheduler.final_alpha_cumprod = scheduler.one if config["set_alpha_to_one"] else scheduler.alphas_cumprod[0]
    return scheduler


def test_schedules_without_signal_at_the_end_are_those_of_diffusers() -> None:
    config = {**SD, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    found, plain = alphas_cumprod(config), alphas_cumprod(SD)
    np.testing.assert_allclose(found, DDIMScheduler(**config).alphas_cumprod.numpy(), rtol=0, atol=2e-6)
    assert found[-1] == 0 and found[0] == pytest.approx(plain[0], rel=1e-12)
    with pytest.raises(ValueError, match="for prediction_type=epsilon: the first step would have no finite mean"):
        alphas_cumprod({**config, "prediction_type": "epsilon"})


def ddim_leads_to_the_next_timestep(spacing: str, steps: int) -> bool:
    """Whether DDIMScheduler's t - 1000 // steps is the next timestep of its own list."""
    return spacing == "leading" or (spacing == "trailing" and 1000 % steps == 0)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("to_one", [True, False])
@pytest.mark.parametrize("eta", [1.0, 0.4])
@pytest.mark.parametrize(
    ("spacing", "steps"),
    [("leading", 50), ("leading", 30), ("leading", 13), ("leading", 8), ("trailing", 10), ("trailing", 50)],
)
def test_ddim_steps_equal_diffusers(prediction: str, to_one: bool, eta: float, spacing: str, steps: int) -> None:
    assert ddim_leads_to_the_next_timestep(spacing, steps)
    config = {**SD, "prediction_type": prediction, "timestep_spacing": spacing, "set_alpha_to_one": to_one}
    scheduler = exact(DDIMScheduler(**config), config)
    scheduler.set_timesteps(steps)
    table = build_transitions(config, steps=steps, eta=eta)
    np.testing.assert_array_equal(table.times, scheduler.timesteps.numpy())
    generator = torch.Generator().manual_seed(0)
    for step, timestep in enumerate(scheduler.timesteps):
        x, output, noise = torch.randn(3, 2, 4, 4, 4, generator=generator, dtype=torch.float64)
        expected = scheduler.step(output, int(timestep), x, eta=eta, variance_noise=noise).prev_sample
        ours = table.mean(step, x, output) + float(table.sigma[step]) * noise
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("eta", [1.0, 0.4])
@pytest.mark.parametrize(
    ("spacing", "steps"), [("linspace", 8), ("linspace", 50), ("trailing", 7), ("trailing", 13), ("trailing", 30)]
)
def test_ddim_steps_lead_to_the_next_timestep_where_those_of_diffusers_do_not(
    prediction: str, eta: float, spacing: str, steps: int
) -> None:
    """Eq. 12 and 16 of Song et al. (2021) between neighbours of the list, and how far off diffusers' step is."""
    assert not ddim_leads_to_the_next_timestep(spacing, steps)
    config = {**SD, "prediction_type": prediction, "timestep_spacing": spacing}
    scheduler = exact(DDIMScheduler(**config), config)
    scheduler.set_timesteps(steps)
    table = build_transitions(config, steps=steps, eta=eta)
    np.testing.assert_array_equal(table.times, scheduler.timesteps.numpy())
    generator = torch.Generator().manual_seed(0)
    alphas = scheduler.alphas_cumprod.double()
    worst = 0.0
    for step, timestep in enumerate(table.times):
        x, output, noise = torch.randn(3, 2, 4, 4, 4, generator=generator, dtype=torch.float64)
        now = alphas[int(timestep)]
        then = alphas[int(table.times[step + 1])] if step + 1 < steps else alphas[0]
        sigma = eta * ((1 - then) / (1 - now) * (1 - now / then)).sqrt()
        clean, epsilon = {
            "epsilon": ((x - (1 - now).sqrt() * output) / now.sqrt(), output),
            "v_prediction": (
                now.sqrt() * x - (1 - now).sqrt() * output,
                now.sqrt() * output + (1 - now).sqrt() * x,
            ),
            "sample": (output, (x - now.sqrt() * output) / (1 - now).sqrt()),
        }[prediction]
        expected = then.sqrt() * clean + (1 - then - sigma**2).sqrt() * epsilon + sigma * noise
        ours = table.mean(step, x, output) + float(table.sigma[step]) * noise
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
        theirs = scheduler.step(output, int(timestep), x, eta=eta, variance_noise=noise).prev_sample
        worst = max(worst, (theirs - ours).abs().max().item())
    assert worst > 1e-3


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [7, 13, 20, 30, 50, 999])
def test_ddpm_steps_equal_diffusers(prediction: str, spacing: str, steps: int) -> None:
    config = {key: value for key, value in SD.items() if key != "set_alpha_to_one"}
    config |= {"prediction_type": prediction, "timestep_spacing": spacing}
    scheduler = exact(DDPMScheduler(**config, variance_type="fixed_small"), config)
    scheduler.set_timesteps(steps)
    table = build_transitions(config, kind="ddpm", steps=steps)
    np.testing.assert_array_equal(table.times, scheduler.timesteps.numpy())
    generator = torch.Generator().manual_seed(0)
    for step in sorted({*range(0, steps, 1 + steps // 60), steps - 1}):
        x, output, noise = torch.randn(3, 2, 2, 2, 2, generator=generator, dtype=torch.float64)
        with patch("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *args, noise=noise, **kwargs: noise):
            expected = scheduler.step(output, int(scheduler.timesteps[step]), x).prev_sample
        ours = table.mean(step, x, output) + float(table.sigma[step]) * noise
        torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-8)
    assert len(table.noisy) == steps - 1
    assert table.sigma[-1] == 0


@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_number_of_steps_has_that_many_timesteps_within_the_schedule(spacing: str) -> None:
    for steps in range(1, 1000):
        timesteps = train_timesteps(SD, steps, spacing)
        assert len(timesteps) == steps
        assert timesteps[-1] >= 0
        assert timesteps[0] < 1000
        assert np.all(np.diff(timesteps) < 0)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("changes", [{}, {"original_inference_steps": 8}, {"timestep_scaling": 0.01}])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8])
def test_consistency_steps_equal_diffusers(prediction: str, changes: dict[str, Any], steps: int) -> None:
    """With a small timestep_scaling the boundary condition shows: there c_skip is 0.003 to 0.2."""
    config = {key: value for key, value in SD.items() if key != "timestep_spacing"}
    config |= {"prediction_type": prediction, **changes}
    scheduler = exact(LCMScheduler(**config), config)
    scheduler.set_timesteps(steps)
    table = build_transitions(config, kind="consistency", steps=steps)
    np.testing.assert_array_equal(table.times, scheduler.timesteps.numpy())
    generator = torch.Generator().manual_seed(0)
    for step, timestep in enumerate(scheduler.timesteps):
        x, output, noise = torch.randn(3, 2, 4, 4, 4, generator=generator, dtype=torch.float64)
        with patch("diffusers.schedulers.scheduling_lcm.randn_tensor", lambda *args, noise=noise, **kwargs: noise):
            expected = scheduler.step(output, timestep, x).prev_sample
        ours = table.mean(step, x, output) + float(table.sigma[step]) * noise
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)
    assert table.noisy.tolist() == list(range(steps - 1))
    assert table.sigma[-1] == 0


def test_consistency_timesteps_are_taken_of_the_schedule_of_distillation() -> None:
    assert build_transitions({**SD, "original_inference_steps": 50}, kind="consistency", steps=4,
                             original_inference_steps=8).times.tolist() == [999, 749, 499, 249]  # fmt: skip


def test_consistency_steps_without_noise_are_those_of_ddim() -> None:
    table = build_transitions(SD, kind="consistency", steps=4, deterministic_final_steps=2)
    assert table.noisy.tolist() == [0, 1]
    alphas = alphas_cumprod(SD)
    scheduler = exact(DDIMScheduler(**{**SD, "set_alpha_to_one": True}), {**SD, "set_alpha_to_one": True})
    scheduler.set_timesteps(1000)  # of which step t leads to t - 1
    x, output = torch.randn(2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    now, then = int(table.times[2]), int(table.times[3])
    scheduler.alphas_cumprod[now - 1] = alphas[then]
    expected = scheduler.step(output, now, x, eta=0.0).prev_sample
    torch.testing.assert_close(table.mean(2, x, output), expected, rtol=1e-6, atol=1e-6)
    quiet = float(table.quiet_sample_coef[2]) * x + float(table.quiet_output_coef[2]) * output
    torch.testing.assert_close(quiet, expected, rtol=1e-6, atol=1e-6)


def test_eta_one_has_the_posterior_mean_of_ddpm() -> None:
    ddim, ddpm = build_transitions(SD, steps=50), build_transitions(SD, kind="ddpm", steps=50)
    np.testing.assert_allclose(ddim.sample_coef[:-1], ddpm.sample_coef[:-1], rtol=1e-12)
    np.testing.assert_allclose(ddim.output_coef[:-1], ddpm.output_coef[:-1], rtol=1e-12)


def test_sensitivity_of_the_paper_setting() -> None:
    table = build_transitions(SD, steps=50)
    at = dict(zip(table.times.tolist(), table.sensitivity.tolist(), strict=True))
    for timestep, expected in {981: 0.26, 61: 0.57, 41: 1.03, 21: 10.7, 1: 1.01}.items():
        assert at[timestep] == pytest.approx(expected, rel=0.03)
    assert table.sigma[-1] == pytest.approx(0.0207, rel=0.01)


def test_deterministic_final_steps_are_ddim_without_noise() -> None:
    table = build_transitions(SD, steps=8, deterministic_final_steps=3)
    assert len(table.noisy) == 5
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


def test_log_ratio_resolves_in_float32_what_a_difference_of_log_probs_cannot() -> None:
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(1, 4, 64, 64, generator=generator)
    d = 1e-4 * torch.randn(1, 4, 64, 64, generator=generator)
    exact = log_ratio(z.double(), d.double()).item()
    assert log_ratio(z, d).item() == pytest.approx(exact, rel=1e-3)
    normal = torch.distributions.Normal(torch.zeros(()), 1.0)
    naive = (normal.log_prob(z - d).mean() - normal.log_prob(z).mean()).item()
    assert abs(naive - exact) > 20 * abs(log_ratio(z, d).item() - exact)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "euler"}, "sampler.kind is 'euler', expected one of ddim, ddpm"),
        ({"steps": 0}, "sampler.steps is 0"),
        ({"steps": 2000}, "sampler.steps is 2000, expected 1 to 1000"),
        ({"spacing": "karras"}, "sampler.timestep_spacing is 'karras'"),
        ({"deterministic_final_steps": 50}, "deterministic_final_steps is 50, expected 0 to 49"),
        ({"kind": "ddpm", "eta": 0.5}, "expected 1 and 0 or 1 for sampler.kind=ddpm"),
        ({"kind": "ddpm", "deterministic_final_steps": 2}, "expected 1 and 0 or 1 for sampler.kind=ddpm"),
        ({"kind": "consistency", "eta": 0.5}, "sampler.eta is 0.5, expected 1 for sampler.kind=consistency"),
        ({"kind": "consistency", "spacing": "trailing"}, "timestep_spacing is trailing, expected null"),
        ({"kind": "consistency", "steps": 51}, "sampler.steps is 51, expected 1 to 50, the original_inference_steps"),
        ({"kind": "consistency", "original_inference_steps": 2000}, "inference_steps is 2000, expected 1 to 1000"),
        ({"steps": 1000, "spacing": "leading"}, "the first timestep would be 1000, and 999 is the last"),
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
