"""Stable Diffusion 3 against diffusers' own pipeline, independent Gaussians and autodiff, on tiny random networks."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from narrow_flow import narrow_pipeline
from PIL import Image
from policy_checks import FULL, PROMPTS, check_gradients, check_log_ratios, moved, scored

from prdp.config import LearnerConfig, ModelConfig, SamplerConfig
from prdp.diffusion import build_policy, build_sampler
from prdp.diffusion.flow_policy import latent_shape
from prdp.diffusion.noise import ImageNoise
from prdp.diffusion.sampler import Sampler
from prdp.diffusion.stable_diffusion_3 import StableDiffusion3Policy
from prdp.evidence.trajectory import TrajectoryRecorder
from prdp.learners import build_learner
from prdp.learners.guards import RatioError
from prdp.support.errors import StartError
from prdp.types import PromptBatch

LORA_TARGETS = ["attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn.to_add_out"]
SAMPLERS: dict[str, dict[str, Any]] = {
    "flow_sde": {"kind": "flow_sde", "eta": 0.7, "deterministic_final_steps": 1},
    "dance_sde": {"kind": "dance_sde", "eta": 0.3, "deterministic_final_steps": 1},
    "cps": {"kind": "cps", "eta": 0.8},
    "edm_churn": {"kind": "edm_churn", "eta": 0.1},
    "cps in a window": {"kind": "cps", "eta": 0.8, "window": "random", "window_size": 2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sd3")
    narrow_pipeline().save_pretrained(path)
    return path


def model(folder: Path, **changes: Any) -> ModelConfig:
    settings = {"family": "stable_diffusion_3", "path": str(folder), "max_sequence_length": 3, "device": "cpu"}
    return ModelConfig(**{**settings, **changes})


def settings(name: str = "cps", **changes: Any) -> SamplerConfig:
    return SamplerConfig(**{**SAMPLERS[name], "steps": 5, "guidance_scale": 1.0, **changes})


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
@pytest.mark.parametrize("grid", [None, "linspace"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_pictures_equal_those_of_diffusers(
    tmp_path: Path, guidance_scale: float, grid: str | None, dynamic: bool
) -> None:
    pipeline = narrow_pipeline(dynamic=dynamic)
    pipeline.save_pretrained(tmp_path)
    sampler = SamplerConfig(kind="euler", steps=6, guidance_scale=guidance_scale, timestep_spacing=grid, microbatch=3)
    ours = build_sampler(model(tmp_path, height=32, width=48), FULL, sampler, seed=0, recorder=TrajectoryRecorder())
    pictures = ours.sample(PROMPTS, 2, seed=5, trajectory=False).images
    pipeline.set_progress_bar_config(disable=True)
    for row, prompt in enumerate(PROMPTS.texts):
        noise = ImageNoise(5, 2, np.array([3 + row] * 2), np.arange(2), (4, 8, 12))
        theirs = pipeline(
            prompt,
            height=32,
            width=48,
            num_images_per_prompt=2,
            num_inference_steps=6,
            sigmas=None if grid is None else list(np.linspace(1, 1 / 6, 6)),
            guidance_scale=guidance_scale,
            latents=torch.from_numpy(noise.draw()),
            max_sequence_length=3,
            output_type="np",
        ).images
        difference = pictures[2 * row : 2 * row + 2].astype(int) - np.round(theirs * 255)
        assert np.abs(difference).max() <= 1


def test_t5_is_optional_and_its_tokens_count(folder: Path) -> None:
    with_t5, without = narrow_pipeline(t5=True), narrow_pipeline()
    encoded = [
        StableDiffusion3Policy(pipeline, model(folder, max_sequence_length=9), FULL).encode(["a star"]).fields["states"]
        for pipeline in (with_t5, without)
    ]
    assert [part.shape for part in encoded] == [(1, 24 + 9, 192)] * 2
    torch.testing.assert_close(encoded[0][:, :24], encoded[1][:, :24])
    assert not encoded[1][:, 24:].any()
    assert encoded[0][:, 24:].abs().min() > 0


@pytest.mark.parametrize("name", sorted(SAMPLERS))
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_log_ratios_are_those_of_independent_gaussians(folder: Path, name: str, guidance_scale: float) -> None:
    rollout = check_log_ratios(model(folder), settings(name, guidance_scale=guidance_scale))
    assert rollout.stored["log_ratio"].shape == (4, 2 if "window" in name else 4)


@pytest.mark.parametrize("name", ["flow_sde", "cps in a window"])
def test_the_two_pass_gradient_is_that_of_autodiff(folder: Path, name: str) -> None:
    check_gradients(model(folder), settings(name))


def test_the_ratio_guard_stops_a_learner_with_other_weights(folder: Path) -> None:
    sampling = settings()
    sampler = build_sampler(model(folder), FULL, sampling, seed=0, recorder=TrajectoryRecorder())
    rollout = scored(sampler.sample(PROMPTS, 2, seed=3))
    policy = build_policy(model(folder), FULL, seed=0, keep_reference=False)
    policy.weights.bind(moved(policy.weights.export(0), 0.2))
    learner = build_learner(policy, policy.process.transitions(sampling), 1.0, FULL, {"name": "prdp", "beta": 1.0})
    with pytest.raises(RatioError, match=r"image \d+, step \d+ \(time 0\.\d+\)"):
        learner.update(rollout)


def test_lora_goes_out_and_comes_back_in_diffusers(folder: Path, tmp_path: Path) -> None:
    learner = LearnerConfig(lora_rank=4, lora_alpha=6.0, lora_targets=LORA_TARGETS)
    policy: Any = build_policy(model(folder), learner, seed=0, keep_reference=False)
    policy.weights.bind(moved(policy.weights.export(0), 0.05))
    policy.save(tmp_path)
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)
    latents = torch.randn(1, 4, 8, 8)

    def output(transformer: Any) -> torch.Tensor:
        conditions = policy.encode(["a star"]).fields
        with torch.no_grad():
            return transformer(
                hidden_states=latents,
                timestep=torch.tensor([500.0]),
                encoder_hidden_states=conditions["states"],
                pooled_projections=conditions["pooled"],
                return_dict=False,
            )[0]

    before = output(pipeline.transformer)
    pipeline.load_lora_weights(tmp_path)
    torch.testing.assert_close(output(pipeline.transformer), output(policy.network), rtol=1e-4, atol=1e-5)
    assert (output(pipeline.transformer) - before).abs().max() > 1e-4


def test_full_weights_go_out_as_a_pipeline(folder: Path, tmp_path: Path) -> None:
    policy: Any = build_policy(model(folder), FULL, seed=0, keep_reference=False)
    policy.weights.bind(moved(policy.weights.export(0)))
    policy.save(tmp_path)
    again: Any = build_policy(model(tmp_path), FULL, seed=0, keep_reference=False)
    assert again.weights.export(1).checksum == policy.weights.export(1).checksum


def test_sizes_that_do_not_fit_are_refused_with_the_nearest_that_do() -> None:
    patches = StableDiffusion3Policy._patches({"patch_size": 2, "pos_embed_max_size": 192, "sample_size": 128}, 8)
    vae = {"block_out_channels": (1, 1, 1, 1), "latent_channels": 16}
    assert latent_shape(patches, vae, (None, None)) == (16, 128, 128)
    assert latent_shape(patches, vae, (512, 768)) == (16, 64, 96)
    for size, message in {
        (520, None): r"model.height=520: must be a multiple of 16 pixels and at most 3072, such as 512 or 528",
        (512, 8): r"model.width=8: must be a multiple of 16 .* such as 16 or 32",
        (4096, 512): r"model.height=4096: .* at most 3072, such as 3072",
    }.items():
        with pytest.raises(StartError, match=message):
            latent_shape(patches, vae, size)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: shutil.rmtree(path / "text_encoder_2"), "names text_encoder_2, but there is no folder"),
        (lambda path: (path / "transformer" / "config.json").unlink(), r"transformer/config.json is missing"),
        (
            lambda path: (path / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "EulerDiscrete"}'),
            "_class_name=EulerDiscrete: must be FlowMatchEulerDiscreteScheduler",
        ),
    ],
)
def test_folders_that_are_not_computed_are_refused(folder: Path, tmp_path: Path, change: Any, message: str) -> None:
    shutil.copytree(folder, tmp_path / "model")
    change(tmp_path / "model")
    with pytest.raises(StartError, match=message):
        build_policy(model(tmp_path / "model"), FULL, seed=0, keep_reference=False)


def test_the_other_family_is_told(folder: Path) -> None:
    with pytest.raises(StartError, match=r"of a StableDiffusion3Pipeline; .*; set model\.family=stable_diffusion_3"):
        build_policy(ModelConfig(path=str(folder)), LearnerConfig(), seed=0, keep_reference=False)


def test_prompts_are_encoded_alike_in_any_batch(folder: Path) -> None:
    policy = build_policy(model(folder), FULL, seed=0, keep_reference=False)
    together = policy.encode(["a star", "two large blue circles"])
    alone = policy.encode(["two large blue circles"])
    for name, value in alone.fields.items():
        torch.testing.assert_close(value, together[np.array([1])].fields[name], rtol=1e-5, atol=1e-6)
    with patch.object(type(policy.pipeline), "encode_prompt", side_effect=AssertionError):  # type: ignore[attr-defined]
        assert together.behind_empty().fields["states"].shape[0] == 4


@pytest.mark.parametrize(
    ("mode", "name", "guidance_scale"),
    [("lora", "flow_sde", 1.0), ("full", "cps", 3.0), ("lora", "cps in a window", 1.0)],
)
def test_the_program_beside_the_weights_makes_the_pictures_of_the_sampler(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, name: str, guidance_scale: float
) -> None:
    sampling = settings(name, guidance_scale=guidance_scale, timestep_spacing="linspace")
    learner = LearnerConfig(mode=mode, lora_rank=4, lora_alpha=6.0, lora_targets=LORA_TARGETS)
    policy: Any = build_policy(model(folder), learner, seed=0, keep_reference=False)
    policy.weights.bind(moved(policy.weights.export(0)))
    policy.save(tmp_path / "weights")
    prompt = PromptBatch(0, 0, ("a star",), ({},))
    without = dataclasses.replace(sampling, kind="euler", window="all") if sampling.window != "all" else sampling
    expected = Sampler(policy, without).sample(prompt, 1, 5, trajectory=False).images[0]
    text = policy.usage(model(folder), sampling, mode, tmp_path / "weights", "a star")
    noise = ImageNoise(5, 0, np.array([0]), np.array([0]), policy.latent_shape)

    def drawn(*_: Any, **__: Any) -> torch.Tensor:
        return torch.from_numpy(noise.draw())

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3.randn_tensor", drawn)
    program = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert program is not None
    real, names = torch.randn, {}
    monkeypatch.setattr(torch, "randn", drawn)
    exec(compile(program[1], "README.md", "exec"), names)
    monkeypatch.setattr(torch, "randn", real)
    picture = np.asarray(Image.open(tmp_path / "picture.png")).astype(int)
    assert np.abs(picture - expected).max() <= 1
    assert ("no guidance" in text) == (guidance_scale <= 1)
