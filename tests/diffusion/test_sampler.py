"""Sampling against diffusers' own pipeline; stored evidence, noise, microbatches and the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

from prdp.config import LearnerConfig, ModelConfig, SamplerConfig
from prdp.diffusion import build_policy, build_sampler
from prdp.diffusion.noise import ImageNoise
from prdp.diffusion.pipeline_loading import load_pipeline
from prdp.diffusion.refinement import rollback
from prdp.diffusion.sampler import Sampler
from prdp.evidence.denoising import FinalLatents
from prdp.evidence.trajectory import TrajectoryRecorder
from prdp.image_sets.chains import ChainLatents
from prdp.support.microbatches import MemoryShortError
from prdp.types import PromptBatch, Weights

PROMPTS = PromptBatch(3, 5, ("a small solid red circle", "a large hollow blue star"), ({}, {}))
SEED, SIZE = 11, 2


def sampler_at(folder: Path, learner: dict[str, Any] | None = None, **settings: Any) -> Sampler:
    config = SamplerConfig(**{"steps": 6, "guidance_scale": 3.0, **settings})
    learning = LearnerConfig(**(learner or {}))
    return build_sampler(ModelConfig(path=str(folder)), learning, config, seed=0, recorder=TrajectoryRecorder())


def moved(weights: Weights) -> Weights:
    """Other weights of the same shapes, with every LoRA factor away from zero."""
    rng = np.random.default_rng(0)
    tensors = {
        name: (value + 0.05 * rng.normal(size=value.shape)).astype(np.float32)
        for name, value in weights.tensors.items()
    }
    return Weights.of(1, tensors)


def test_memory_that_runs_out_halves_the_microbatch_of_the_chunk(
    pipeline_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In the decoder of the second microbatch; the rollout is that of the smaller size."""
    small, short = (sampler_at(pipeline_folder, steps=2, microbatch=size) for size in (1, 3))
    decode = type(short.policy).decode

    def deadly(policy: Any, latents: torch.Tensor) -> Any:
        if len(latents) > 1 and policy is short.policy:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(policy, latents)

    monkeypatch.setattr(type(short.policy), "decode", deadly)
    for _ in range(2):
        expected, found = small.sample(PROMPTS, SIZE, SEED), short.sample(PROMPTS, SIZE, SEED)
        np.testing.assert_array_equal(found.images, expected.images)
        assert found.stored.keys() == expected.stored.keys()
        for name, value in expected.stored.items():
            np.testing.assert_array_equal(found.stored[name], value, name)
    told = [line.message for line in caplog.records if "memory ran out" in line.message]
    assert told == [
        "epoch 3: memory ran out at 3 rows a network call (CUDA out of memory); done again, and from now on, with "
        "sampler.microbatch=1"
    ]
    monkeypatch.setattr(type(short.policy), "decode", lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
    with pytest.raises(MemoryShortError, match=r"epoch 3: .* sampler\.microbatch=1, .*model\.offload_vae"):
        short.sample(PROMPTS, SIZE, SEED)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("guidance_scale", "spacing", "steps", "negative"),
    [(3.0, None, 6, None), (3.0, None, 3, "two small stars"), (1.0, "trailing", 5, None), (0.5, None, 3, None)],
)
def test_images_equal_those_of_diffusers(
    pipeline_folder: Path, guidance_scale: float, spacing: str | None, steps: int, negative: str | None
) -> None:
    drawing = {"guidance_scale": guidance_scale, "timestep_spacing": spacing, "negative_prompt": negative}
    sampler = sampler_at(pipeline_folder, steps=steps, **drawing)
    ours = sampler.sample(PROMPTS, SIZE, SEED).images

    pipeline = load_pipeline(ModelConfig(path=str(pipeline_folder)))
    if spacing:
        pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, timestep_spacing=spacing)
    noise = ImageNoise(SEED, 3, np.array([5, 5, 6, 6]), np.array([0, 1, 0, 1]), (4, 8, 8))
    first = torch.from_numpy(noise.draw())
    with patch(
        "diffusers.schedulers.scheduling_ddim.randn_tensor", lambda *args, **kwargs: torch.from_numpy(noise.draw())
    ):
        theirs = pipeline(
            [text for text in PROMPTS.texts for _ in range(SIZE)],
            latents=first,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            negative_prompt=None if negative is None else [negative] * 4,
            eta=1.0,
            output_type="np",
        ).images
    difference = np.abs(ours.astype(int) - (theirs * 255).round().astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


def test_noise_belongs_to_seed_epoch_prompt_and_image() -> None:
    def draws(seed: int = 1, epoch: int = 2, prompts: Any = (3, 4), images: Any = (0, 1)) -> Any:
        noise = ImageNoise(seed, epoch, np.array(prompts), np.array(images), (2, 3, 3))
        return noise.draw(), noise.draw()

    first, second = draws()
    np.testing.assert_array_equal(draws(prompts=(4, 3), images=(1, 0))[1][::-1], second)
    assert not np.allclose(first, second)
    for change in ({"seed": 2}, {"epoch": 3}, {"prompts": (30, 40)}, {"images": (2, 3)}):
        assert not np.allclose(draws(**change)[0], first)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["lora", "full"])
def test_start_equals_reference_and_moved_weights_do_not(pipeline_folder: Path, mode: str) -> None:
    sampler = sampler_at(pipeline_folder, {"mode": mode})
    start = sampler.sample(PROMPTS, SIZE, SEED)
    assert not start.stored["log_ratio"].any()
    weights = moved(sampler._policy.weights.export(0))
    assert sampler.load_weights(weights) == (1, weights.checksum)
    after = sampler.sample(PROMPTS, SIZE, SEED)
    assert np.abs(after.stored["log_ratio"]).min() > 0
    assert after.weights_version == 1
    # The same x_T, so the reference's first output is that of the untouched start.
    np.testing.assert_array_equal(after.stored["latents"][:, 0], start.stored["latents"][:, 0])
    np.testing.assert_allclose(after.stored["base_output"][:, 0], start.stored["base_output"][:, 0], atol=1e-5)


@pytest.mark.slow
def test_stored_log_ratios_are_those_of_the_two_gaussians(pipeline_folder: Path) -> None:
    sampler = sampler_at(pipeline_folder, deterministic_final_steps=2)
    sampler.load_weights(moved(sampler._policy.weights.export(0)))
    rollout = sampler.sample(PROMPTS, SIZE, SEED)
    assert rollout.stored["latents"].shape == (4, 5, 4, 8, 8)
    assert rollout.stored["log_ratio"].shape == (4, 4)
    policy, table = sampler._policy, sampler._transitions
    np.testing.assert_array_equal(rollout.stored["steps"], [[0, 1, 2, 3]] * 4)
    states = policy.encode(rollout.image_prompts)
    for step in range(4):
        x = torch.from_numpy(rollout.stored["latents"][:, step])
        with torch.no_grad():
            output = policy.output(x, torch.full((4,), float(table.times[step])), states, 3.0)
        following = torch.from_numpy(rollout.stored["latents"][:, step + 1]).double()
        sigma = float(table.sigma[step])

        def log_prob(at: torch.Tensor, value: torch.Tensor = following, scale: float = sigma) -> torch.Tensor:
            return torch.distributions.Normal(at.double(), scale).log_prob(value).flatten(1).mean(1)

        reference = table.mean(step, x, torch.from_numpy(rollout.stored["base_output"][:, step]))
        new, old = log_prob(table.mean(step, x, output)), log_prob(reference)
        np.testing.assert_allclose(rollout.stored["log_ratio"][:, step], (new - old).numpy(), atol=2e-5)


@pytest.mark.slow
def test_microbatches_and_trajectories_do_not_change_images(pipeline_folder: Path) -> None:
    whole = sampler_at(pipeline_folder).sample(PROMPTS, SIZE, SEED)
    cut = sampler_at(pipeline_folder, microbatch=3).sample(PROMPTS, SIZE, SEED)
    np.testing.assert_allclose(cut.stored["latents"], whole.stored["latents"], atol=2e-4)
    bare = sampler_at(pipeline_folder).sample(PROMPTS, SIZE, SEED, trajectory=False)
    np.testing.assert_array_equal(bare.images, whole.images)
    assert not bare.stored and not bare.conditions


@pytest.mark.slow
def test_final_latents_are_kept_alone_and_decode_to_the_images(pipeline_folder: Path) -> None:
    whole = sampler_at(pipeline_folder, deterministic_final_steps=1).sample(PROMPTS, SIZE, SEED)
    settings = SamplerConfig(steps=6, guidance_scale=3.0, deterministic_final_steps=1, microbatch=3)
    path = ModelConfig(path=str(pipeline_folder))
    sampler = build_sampler(path, LearnerConfig(mode="full"), settings, seed=0, recorder=FinalLatents())
    sampler.load_weights(Weights.of(1, sampler._policy.weights.export(1).tensors))  # no reference, and none is asked
    rollout = sampler.sample(PROMPTS, SIZE, SEED)
    assert rollout.stored.keys() == {"final_latents"}
    np.testing.assert_array_equal(
        sampler._policy.decode(torch.from_numpy(rollout.stored["final_latents"])), rollout.images
    )
    assert np.abs(rollout.images.astype(int) - whole.images).max() <= 1
    assert not sampler.sample(PROMPTS, SIZE, SEED, trajectory=False).stored
    parts = [sampler.sample(chunk, SIZE, SEED).stored["final_latents"] for chunk in PROMPTS.chunks(1)]
    np.testing.assert_allclose(np.concatenate(parts), rollout.stored["final_latents"], atol=2e-4)


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_a_reference_kept_later_is_the_start(pipeline_folder: Path, mode: str) -> None:
    policy, start = (
        build_policy(ModelConfig(path=str(pipeline_folder)), LearnerConfig(mode=mode), seed=0, keep_reference=False)
        for _ in range(2)
    )
    policy.weights.keep_reference()
    policy.weights.bind(moved(policy.weights.export(0)))
    latents, timesteps = torch.randn(2, *policy.latent_shape), torch.tensor([981, 41])
    states = policy.encode(PROMPTS.texts)
    with torch.no_grad():
        expected = start.output(latents, timesteps, states, 3.0)
        with policy.reference() as network:
            torch.testing.assert_close(policy.output(latents, timesteps, states, 3.0, network), expected)
        assert not torch.allclose(policy.output(latents, timesteps, states, 3.0), expected, atol=1e-3)


def test_weights_that_do_not_fit_are_named(pipeline_folder: Path) -> None:
    sampler = sampler_at(pipeline_folder)
    weights = sampler._policy.weights.export(1)
    name = sorted(weights.tensors)[0]
    fewer = {key: value for key, value in weights.tensors.items() if key != name}
    with pytest.raises(ValueError, match="1 tensors missing"):
        sampler.load_weights(Weights.of(1, fewer))
    with pytest.raises(ValueError, match="1 unknown"):
        sampler.load_weights(Weights.of(1, {**weights.tensors, "stray": np.zeros(2, np.float32)}))
    with pytest.raises(ValueError, match=r"has shape \(2, 2\), expected"):
        sampler.load_weights(Weights.of(1, {**weights.tensors, name: np.zeros((2, 2), np.float32)}))
    with pytest.raises(ValueError, match="published beef"):
        sampler.load_weights(Weights(1, weights.tensors, "beef"))


def test_lora_targets_that_match_nothing_are_named(pipeline_folder: Path) -> None:
    learner = LearnerConfig(lora_targets=["to_q", "to_quarry"])
    with pytest.raises(ValueError, match=r"(?s)learner\.lora_targets: 'to_quarry' matches no layer .* to_q"):
        build_policy(ModelConfig(path=str(pipeline_folder)), learner, seed=0, keep_reference=False)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["lora", "full"])
def test_exported_weights_load_into_diffusers_with_equal_images(
    pipeline_folder: Path, tmp_path: Path, mode: str
) -> None:
    from diffusers import StableDiffusionPipeline

    policy = build_policy(
        ModelConfig(path=str(pipeline_folder)), LearnerConfig(mode=mode), seed=0, keep_reference=False
    )
    policy.weights.bind(moved(policy.weights.export(0)))
    policy.save(tmp_path / "weights")
    if mode == "lora":
        pipeline = StableDiffusionPipeline.from_pretrained(pipeline_folder, safety_checker=None)
        pipeline.load_lora_weights(tmp_path / "weights")
    else:
        pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "weights", safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def image(of: Any) -> np.ndarray:
        return of("a small solid red circle", latents=latents.clone(), num_inference_steps=3, output_type="np").images

    untouched = image(StableDiffusionPipeline.from_pretrained(pipeline_folder, safety_checker=None))
    mine = policy.pipeline  # type: ignore[attr-defined]
    np.testing.assert_allclose(image(pipeline), image(mine), atol=1e-5)
    assert np.abs(image(mine) - untouched).max() > 1e-3


def test_transitions_follow_the_checkpoint(pipeline_folder: Path) -> None:
    policy = build_policy(ModelConfig(path=str(pipeline_folder)), LearnerConfig(), seed=0, keep_reference=False)
    table = policy.process.transitions(SamplerConfig(steps=50))
    assert table.times[0] == 981
    assert table.times[-1] == 1


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_chains_that_begin_within_end_as_whole_ones_do(small_pipeline: Path, eta: float) -> None:
    settings = SamplerConfig(steps=5, guidance_scale=2.0, eta=eta, microbatch=3)
    model = ModelConfig(path=str(small_pipeline))
    sampler = build_sampler(model, LearnerConfig(mode="frozen"), settings, seed=0, recorder=ChainLatents())
    whole = sampler.sample(PROMPTS, SIZE, SEED)
    chain = whole.stored["chain_latents"]
    assert chain.shape == (4, 6, 4, 8, 8)
    np.testing.assert_array_equal(chain[:, -1], whole.stored["final_latents"])
    np.testing.assert_array_equal(whole.network_passes, [10.0] * 4)
    for step in (0, 2, 4):
        part = sampler.sample(PROMPTS, SIZE, SEED, trajectory=False, start=(chain[:, step], step))
        np.testing.assert_array_equal(part.images, whole.images)
        np.testing.assert_array_equal(part.network_passes, [2.0 * (5 - step)] * 4)
    for start, told in (
        ((chain[:3, 0], 0), r"latents are float32 \(3, 4, 8, 8\), expected float32 \(4, 4, 8, 8\)"),
        ((chain[:, 0], 5), "step is 5, expected 0 to 4 of 5 steps"),
    ):
        with pytest.raises(ValueError, match=told):
            sampler.sample(PROMPTS, SIZE, SEED, trajectory=False, start=start)
    with pytest.raises(ValueError, match="sample with trajectory=False"):
        sampler.sample(PROMPTS, SIZE, SEED, start=(chain[:, 0], 0))


def test_every_strength_takes_the_wanted_number_of_steps() -> None:
    for steps in range(1, 31):
        for strength in np.linspace(0.1, 1.0, 19):
            total, first = rollback(steps, float(strength))
            assert total - first == steps
            assert abs(steps / total - strength) <= 0.5 * strength / steps
    assert rollback(4, 1.0) == (4, 0) and rollback(4, 0.5) == (8, 4)
    for wrong in ((0, 0.5), (4, 0.0), (4, 1.1)):
        with pytest.raises(ValueError, match="expected"):
            rollback(*wrong)
