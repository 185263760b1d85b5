"""Which steps draw noise, which are stored, and that neither changes what the others do."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prdp.config import LearnerConfig, ModelConfig, SamplerConfig
from prdp.diffusion import build_sampler
from prdp.diffusion.noise import ImageNoise
from prdp.diffusion.windows import stored_latents, trained, trained_steps, windows
from prdp.evidence.trajectory import TrajectoryRecorder, stored_positions
from prdp.types import PromptBatch
from prdp.worlds.mixtures.grammar import prompt_at

NOISY = np.arange(9)
FULL, RECORDER = LearnerConfig(mode="full"), TrajectoryRecorder()
PROMPTS = np.arange(40)


def test_a_sliding_window_moves_and_starts_anew() -> None:
    sampler = SamplerConfig(window="sliding", window_size=3, window_start=1, window_end=6, window_every=2)
    starts = [windows(sampler, NOISY, 0, epoch, PROMPTS[:2])[:, 0].tolist() for epoch in range(8)]
    assert starts == [[1, 1], [1, 1], [2, 2], [2, 2], [3, 3], [3, 3], [1, 1], [1, 1]]


def test_random_windows_are_a_function_of_seed_epoch_and_prompt() -> None:
    sampler = SamplerConfig(window="random", window_size=2, window_end=5)
    chosen = windows(sampler, NOISY, 0, 3, PROMPTS)
    assert set(chosen[:, 0]) == {0, 1, 2, 3}
    np.testing.assert_array_equal(chosen[:, 1], chosen[:, 0] + 1)
    np.testing.assert_array_equal(windows(sampler, NOISY, 0, 3, PROMPTS[30:]), chosen[30:])
    assert (windows(sampler, NOISY, 0, 4, PROMPTS) != chosen).any()
    assert (windows(sampler, NOISY, 1, 3, PROMPTS) != chosen).any()


def test_a_share_of_the_steps_is_drawn_for_every_prompt() -> None:
    sampler = SamplerConfig(trained_share=0.6)
    noise = windows(sampler, NOISY, 0, 0, PROMPTS)
    np.testing.assert_array_equal(noise, np.tile(NOISY, (40, 1)))
    chosen = trained(sampler, noise, 0, 0, PROMPTS)
    assert chosen.shape == (40, trained_steps(sampler, NOISY)) == (40, 5)
    assert (np.diff(chosen, axis=1) > 0).all()
    counts = np.bincount(chosen.ravel(), minlength=9)
    assert counts.min() > 10, "every step has its turn"
    np.testing.assert_array_equal(trained(sampler, noise[30:], 0, 0, PROMPTS[30:]), chosen[30:])
    assert stored_positions(chosen).max() + 2 <= stored_latents(sampler, NOISY)


def test_neighbouring_steps_share_the_latents_between_them() -> None:
    np.testing.assert_array_equal(
        stored_positions(np.array([[2, 3, 4], [0, 2, 3], [1, 3, 5]])), [[0, 1, 2], [0, 2, 3], [0, 2, 4]]
    )


SETTINGS: dict[str, dict[str, Any]] = {
    "fixed": {"window": "fixed", "window_start": 2, "window_size": 3},
    "random": {"window": "random", "window_size": 2},
    "share": {"trained_share": 0.5},
    "random share": {"window": "random", "window_size": 4, "trained_share": 0.5},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_stored_transitions_are_those_of_the_trajectory(pipeline_folder: Path, name: str) -> None:
    """Against a trajectory that is followed step by step outside the sampler, with the same noise."""
    settings = SamplerConfig(steps=6, guidance_scale=1.0, microbatch=5, **SETTINGS[name])
    sampler = build_sampler(ModelConfig(path=str(pipeline_folder)), FULL, settings, seed=0, recorder=RECORDER)
    prompts = PromptBatch(1, 7, ("a", "b", "c"), ({}, {}, {}))
    rollout = sampler.sample(prompts, 2, seed=3)
    policy, table = sampler._policy, sampler._transitions
    noise = windows(settings, table.noisy, 3, 1, 7 + np.arange(3)).repeat(2, 0)
    whole = build_sampler(
        ModelConfig(path=str(pipeline_folder)), FULL,
        SamplerConfig(steps=6, guidance_scale=1.0), seed=0, recorder=RECORDER,
    ).sample(prompts, 2, seed=3)  # fmt: skip
    conditions = policy.encode(rollout.image_prompts)
    for image in range(6):
        stream = ImageNoise(3, 1, np.array([7 + image // 2]), np.array([image % 2]), policy.latent_shape)
        x = torch.from_numpy(stream.draw())
        np.testing.assert_array_equal(x[0], whole.stored["latents"][image, 0])
        for step in range(6):
            time = torch.full((1,), float(table.times[step]))
            with torch.no_grad():
                output = policy.output(x, time, conditions[np.array([image])], 1.0)
            drawn = torch.from_numpy(stream.draw()) if table.sigma[step] else torch.zeros_like(x)
            noisy = step in noise[image]
            sample, by_output = (
                (table.sample_coef, table.output_coef) if noisy else (table.quiet_sample_coef, table.quiet_output_coef)
            )
            after = float(sample[step]) * x + float(by_output[step]) * output
            after = after + float(table.sigma[step]) * drawn if noisy else after
            if step in rollout.stored["steps"][image]:
                column = rollout.stored["steps"][image].tolist().index(step)
                place = stored_positions(rollout.stored["steps"])[image, column]
                np.testing.assert_allclose(rollout.stored["latents"][image, place], x[0], atol=2e-5)
                np.testing.assert_allclose(rollout.stored["latents"][image, place + 1], after[0], atol=2e-5)
                np.testing.assert_allclose(rollout.stored["base_output"][image, column], output[0], atol=2e-5)
            x = after
        assert np.abs(rollout.images[image].astype(int) - policy.decode(x)[0]).max() <= 1


def test_images_of_a_prompt_can_share_their_start(pipeline_folder: Path) -> None:
    def latents(shared: bool) -> np.ndarray:
        settings = SamplerConfig(steps=3, guidance_scale=1.0, shared_start_noise=shared)
        sampler = build_sampler(ModelConfig(path=str(pipeline_folder)), FULL, settings, seed=0, recorder=RECORDER)
        return sampler.sample(PromptBatch(0, 0, ("a", "b"), ({}, {})), 3, seed=3).stored["latents"]

    own, shared = latents(False), latents(True)
    np.testing.assert_array_equal(shared[:3, 0], np.tile(own[:1, 0], (3, 1, 1, 1)))
    np.testing.assert_allclose(shared[0], own[0], atol=1e-5)
    assert not np.allclose(shared[0, 1], shared[1, 1])
    assert not np.allclose(shared[0, 0], shared[3, 0])


def test_evaluations_draw_a_start_for_each_image() -> None:
    model, prompts = ModelConfig(family="gaussian_mixtures"), PromptBatch(0, 0, (prompt_at("train", 0),), ({},))
    plain = SamplerConfig(steps=2, eta=0.0, guidance_scale=1.0)
    shared = dataclasses.replace(plain, shared_start_noise=True, start_churn=0.1)
    pictures = [
        build_sampler(model, FULL, settings, seed=0).sample(prompts, 3, seed=3, trajectory=False).images
        for settings in (plain, shared)
    ]
    np.testing.assert_array_equal(*pictures)


GAMMA, LARGE = 0.5, (4, 50, 50)


def starts(images: np.ndarray, prompts: np.ndarray | None = None, **settings: Any) -> tuple[np.ndarray, np.ndarray]:
    """The start noise of images, and their first draw of a step."""
    noise = ImageNoise(3, 1, np.zeros_like(images) if prompts is None else prompts, images, LARGE, **settings)
    return noise.draw(), noise.draw()


def test_a_part_of_the_start_is_each_images_own() -> None:
    """Each start is standard normal, and two of a prompt have the correlation C^2, image 0 too."""
    images = np.arange(4)
    own, steps = starts(images)
    churned, same_steps = starts(images, shared_start=True, start_churn=GAMMA)
    np.testing.assert_array_equal(steps, same_steps)
    assert churned.dtype == np.float32
    kept = 1 / (1 + GAMMA)
    correlations = np.corrcoef(churned.reshape(4, -1))
    np.testing.assert_allclose(correlations, kept**2 + (1 - kept**2) * np.eye(4), atol=0.03)
    np.testing.assert_allclose(churned.std((1, 2, 3)), 1.0, atol=0.02)
    parts = (churned - kept * own[0]) / np.sqrt(1 - kept**2)
    together = np.concatenate([own, steps, parts]).reshape(12, -1)
    np.testing.assert_allclose(np.corrcoef(together), np.eye(12), atol=0.05, err_msg="drawn apart from all else")
    alone, _ = starts(images[2:3], shared_start=True, start_churn=GAMMA)
    np.testing.assert_array_equal(alone[0], churned[2])
    other, _ = starts(images[:1], np.array([1]), shared_start=True, start_churn=GAMMA)
    assert abs(np.corrcoef(other.ravel(), churned[0].ravel())[0, 1]) < 0.05
    unchurned, _ = starts(images, shared_start=True, start_churn=0.0)
    np.testing.assert_array_equal(unchurned, np.tile(own[:1], (4, 1, 1, 1)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": "some"}, "sampler.window is 'some', expected one of all, fixed, sliding, random"),
        ({"window": "fixed", "window_size": 10}, "sampler.window_size is 10, expected 1 to 9"),
        ({"window": "fixed", "window_start": 8}, "sampler.window_start is 8, expected 0 to 7"),
        ({"window": "random", "window_end": 1}, "sampler.window_end is 1, expected at least 2"),
        ({"window": "random", "window_end": 11}, "sampler.window_end is 11, expected at most"),
        ({"trained_share": 0.0}, "sampler.trained_share is 0.0, expected more than 0"),
    ],
)
def test_bad_settings_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trained_steps(SamplerConfig(**change), NOISY)
