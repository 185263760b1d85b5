"""The forward process against diffusers' schedulers, and draws that nothing but their address decides."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from prdp.diffusion.noise import ImageNoise
from prdp.diffusion.process import denoising_log_likelihood, draw_cells
from prdp.diffusion.variance_preserving import VariancePreserving

SHAPE = (4, 3, 3)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_noised_latents_and_targets_equal_diffusers(prediction: str) -> None:
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction
    )
    process = VariancePreserving(scheduler.config)
    cells = np.arange(6)
    timesteps, drawn = draw_cells(process, 0, 0, cells, cells, cells, SHAPE)
    latents, noise = torch.randn(6, *SHAPE), torch.from_numpy(drawn)
    noised, target = process.noised(latents, timesteps, noise)
    steps = torch.from_numpy(timesteps).long()
    torch.testing.assert_close(process.clean(noised, timesteps, target), latents, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(noised, scheduler.add_noise(latents, noise, steps))
    velocity = scheduler.get_velocity(latents, noise, steps)
    expected = {"epsilon": noise, "v_prediction": velocity, "sample": latents}[prediction]
    torch.testing.assert_close(target, expected)


def test_draws_have_an_address() -> None:
    process = VariancePreserving(DDPMScheduler().config)
    cells = np.arange(40)
    timesteps, noise = draw_cells(process, 3, 7, cells // 8, cells // 2 % 4, cells % 2, SHAPE)
    assert np.unique(noise.reshape(40, -1), axis=0).shape[0] == 40
    assert 0 <= timesteps.min() < 250 < 750 < timesteps.max() < 1000
    alone = draw_cells(process, 3, 7, np.array([2]), np.array([1]), np.array([1]), SHAPE)
    assert alone[0] == timesteps[19]
    np.testing.assert_array_equal(alone[1][0], noise[19])
    for seed, update in ((4, 7), (3, 8)):
        other = draw_cells(process, seed, update, np.array([2]), np.array([1]), np.array([1]), SHAPE)
        assert not np.allclose(other[1], alone[1])
    # Not the noise that the latents were sampled from, which they would be too easy to denoise from.
    sampling = ImageNoise(3, 7, np.array([2]), np.array([1]), SHAPE)
    assert all(np.abs(sampling.draw() - alone[1]).max() > 0.1 for _ in range(3))


def test_evidence_is_minus_the_mean_squared_error() -> None:
    output, target = torch.zeros(2, 1, 1, 2), torch.tensor([[1.0, 3.0], [0.0, 2.0]]).view(2, 1, 1, 2)
    torch.testing.assert_close(denoising_log_likelihood(output, target), torch.tensor([-5.0, -2.0]))
