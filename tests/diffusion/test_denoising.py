"""The forward process against diffusers' schedulers, and draws that nothing but their address decides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from prdp.diffusion.noise import ImageNoise
from prdp.diffusion.process import Draws, denoising_error
from prdp.diffusion.rectified_flow import RectifiedFlow
from prdp.diffusion.variance_preserving import VariancePreserving

SHAPE = (4, 3, 3)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_noised_latents_and_targets_equal_diffusers(prediction: str) -> None:
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction
    )
    process = VariancePreserving(scheduler.config)
    cells = np.arange(6)
    timesteps, drawn = Draws(process, 0, 0).cells(cells, cells, cells, SHAPE)
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
    timesteps, noise = Draws(process, 3, 7).cells(cells // 8, cells // 2 % 4, cells % 2, SHAPE)
    assert np.unique(noise.reshape(40, -1), axis=0).shape[0] == 40
    assert 0 <= timesteps.min() < 250 < 750 < timesteps.max() < 1000
    alone = Draws(process, 3, 7).cells(np.array([2]), np.array([1]), np.array([1]), SHAPE)
    assert alone[0] == timesteps[19]
    np.testing.assert_array_equal(alone[1][0], noise[19])
    for seed, update in ((4, 7), (3, 8)):
        other = Draws(process, seed, update).cells(np.array([2]), np.array([1]), np.array([1]), SHAPE)
        assert not np.allclose(other[1], alone[1])
    # Not the noise that the latents were sampled from, which they would be too easy to denoise from.
    sampling = ImageNoise(3, 7, np.array([2]), np.array([1]), SHAPE)
    assert all(np.abs(sampling.draw() - alone[1]).max() > 0.1 for _ in range(3))


def test_noise_that_images_share_is_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    draws, streams = Draws(VariancePreserving(DDPMScheduler().config), 3, 7, count=2), []
    stream = Draws._stream
    monkeypatch.setattr(Draws, "_stream", lambda self, *key: streams.append(key) or stream(self, *key))
    prompts, numbers = np.repeat([4, 5], 6), np.tile([0, 1], 6)
    times, noise = draws.cells(prompts, np.zeros(12, np.int64), numbers, SHAPE)
    assert len(streams) == 4
    for cell in range(12):
        alone = draws.cells(prompts[cell : cell + 1], np.array([0]), numbers[cell : cell + 1], SHAPE)
        assert alone[0] == times[cell]
        np.testing.assert_array_equal(alone[1][0], noise[cell])


def test_times_are_stratified_or_of_the_sampler_from_the_noisiest_down() -> None:
    flow, images, steps = RectifiedFlow({}), np.repeat(np.arange(50), 4), np.array([1.0, 0.9, 0.7, 0.4, 0.1])
    draws, alike = np.tile(np.arange(4), 50), np.zeros_like(images)

    def drawn(**settings: Any) -> np.ndarray:
        return Draws(flow, 3, 7, count=4, steps=steps, **settings).cells(alike, images, draws, SHAPE)[0].reshape(50, 4)

    strata = drawn(times="stratified", noisiest=0.5)
    edges = 1.0 - 0.5 * np.arange(5) / 4
    assert ((edges[1:] < strata) & (strata <= edges[:-1])).all()
    assert (strata.std(0) > 0.02).all()
    noisiest = drawn(noisiest=0.25)
    assert 0.75 < noisiest.min() < 0.77 and 0.98 < noisiest.max() <= 1.0
    grid = drawn(times="sampler", noisiest=0.8)
    assert {tuple(sorted(row)) for row in grid} == {(0.4, 0.7, 0.9, 1.0)}, "each step once"
    assert len({tuple(row) for row in grid}) > 10, "in random order"
    parts = drawn(times="sampler_stratified")
    # Four parts of five steps: the steps at their borders belong to two of them.
    parts_of = [{1.0, 0.9}, {0.9, 0.7}, {0.7, 0.4}, {0.4, 0.1}]
    assert [set(parts[:, place]) for place in range(4)] == parts_of
    np.testing.assert_allclose((parts == 0.7).sum() / parts.size, 0.2, atol=0.05)
    again = drawn(times="sampler", noisiest=0.4)
    assert all(sorted(row) == [0.9, 0.9, 1.0, 1.0] for row in again.tolist()), "steps repeat in turn"


def test_the_error_is_the_mean_square_or_that_over_the_mean_distance() -> None:
    output, target = torch.zeros(3, 1, 1, 2), torch.tensor([[1.0, 3.0], [0.0, 2.0], [0.0, 0.0]]).view(3, 1, 1, 2)
    output.requires_grad_()
    torch.testing.assert_close(denoising_error(output, target), torch.tensor([5.0, 2.0, 0.0]))
    weighted = denoising_error(output, target, adaptive_weight=True)
    torch.testing.assert_close(weighted, torch.tensor([2.5, 2.0, 0.0]))
    [gradient] = torch.autograd.grad(weighted.sum(), output)
    torch.testing.assert_close(gradient[0].flatten(), torch.tensor([-0.5, -1.5]), msg="the weight has no gradient")
