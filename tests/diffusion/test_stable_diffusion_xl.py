"""Stable Diffusion XL against diffusers' own pipeline, independent Gaussians and autodiff, on tiny random networks."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, LCMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from narrow_xl import narrow_xl
from policy_checks import FULL, PROMPTS, check_gradients, check_log_ratios, moved, scored
from safetensors.torch import load_file, save_file
from usage_program import run_program

from prdp.config import LearnerConfig, ModelConfig, SamplerConfig
from prdp.diffusion import build_policy, build_sampler, family_of
from prdp.diffusion.adapter_tensors import LORA_FILE
from prdp.diffusion.noise import ImageNoise
from prdp.diffusion.precision import upcast
from prdp.diffusion.sampler import Sampler
from prdp.evidence.trajectory import TrajectoryRecorder
from prdp.learners import build_learner
from prdp.learners.guards import RatioError
from prdp.support.errors import StartError
from prdp.types import PromptBatch

ONE = PromptBatch(0, 0, ("a star",), ({},))
LORA = LearnerConfig(lora_rank=4, lora_alpha=6.0, lora_targets=["attn2.to_q", "ff.net.2"])
STATISTICS = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.5, 0.5, 1.0, 2.0]}
V_PREDICTION = {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}
SAMPLERS: dict[str, dict[str, Any]] = {
    "ddim": {"kind": "ddim", "eta": 1.0},
    "last steps without noise": {"kind": "ddim", "eta": 0.6, "deterministic_final_steps": 2},
    "ddpm": {"kind": "ddpm", "timestep_spacing": "trailing"},
    "window": {"kind": "ddim", "window": "random", "window_size": 2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sdxl")
    narrow_xl().save_pretrained(path)
    return path


def model(folder: Path, **changes: Any) -> ModelConfig:
    settings = {"family": "stable_diffusion_xl", "path": str(folder), "device": "cpu"}
    return ModelConfig(**{**settings, **changes})


def settings(name: str = "ddim", **changes: Any) -> SamplerConfig:
    return SamplerConfig(**{**SAMPLERS[name], "steps": 4, "guidance_scale": 1.0, **changes})


@pytest.mark.parametrize(
    ("guidance_scale", "negative", "scheduler", "index", "vae"),
    [
        (1.0, None, {"steps_offset": 0}, {}, {"force_upcast": False}),
        (4.0, None, {}, {"force_zeros_for_empty_prompt": False}, STATISTICS),
        (4.0, None, {**V_PREDICTION, "rescale_betas_zero_snr": True}, {}, {}),
        (4.0, "a large star", {}, {}, {}),
        (4.0, "", {}, {}, {}),
    ],
)
def test_pictures_equal_those_of_diffusers(
    tmp_path: Path,
    guidance_scale: float,
    negative: str | None,
    scheduler: dict[str, Any],
    index: dict[str, Any],
    vae: dict[str, Any],
) -> None:
    pipeline = narrow_xl(scheduler, **index)
    pipeline.vae.register_to_config(**vae)
    pipeline.save_pretrained(tmp_path)
    sampler = SamplerConfig(steps=4, guidance_scale=guidance_scale, negative_prompt=negative, microbatch=3)
    ours = build_sampler(model(tmp_path, height=32, width=48), FULL, sampler, seed=0)
    pictures = ours.sample(PROMPTS, 1, seed=5, trajectory=False).images
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config({**pipeline.scheduler.config, "clip_sample": False})
    noise = ImageNoise(5, 2, np.array([3, 4]), np.array([0, 0]), (4, 8, 12))
    first = torch.from_numpy(noise.draw())
    with patch("diffusers.schedulers.scheduling_ddim.randn_tensor", lambda *_, **__: torch.from_numpy(noise.draw())):
        theirs = pipeline(
            list(PROMPTS.texts),
            height=32,
            width=48,
            latents=first,
            num_inference_steps=4,
            guidance_scale=guidance_scale,
            negative_prompt=None if negative is None else [negative] * 2,
            eta=1.0,
            output_type="np",
        ).images
    assert np.abs(pictures.astype(int) - np.round(theirs * 255)).max() <= 1
    assert np.ptp(pictures) > 50
    assert np.mean((pictures > 0) & (pictures < 255)) > 0.2, "saturated pictures would be equal whatever is computed"


def test_latent_consistency_models_are_told_the_guidance(tmp_path: Path) -> None:
    """One pass a step, and the pictures of diffusers."""
    pipeline = narrow_xl()
    config = {key: value for key, value in pipeline.unet.config.items() if not key.startswith("_")}
    pipeline.unet = UNet2DConditionModel.from_config({**config, "time_cond_proj_dim": 16}).eval()
    pipeline.unet.time_embedding.cond_proj.weight.data.mul_(5)
    pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config)
    pipeline.save_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    drawn = []
    for scale in (8.0, 2.0):
        sampler = SamplerConfig(kind="consistency", steps=3, guidance_scale=scale, microbatch=3)
        rollout = build_sampler(model(tmp_path), FULL, sampler, seed=0).sample(PROMPTS, 1, seed=5, trajectory=False)
        assert rollout.network_passes is not None and rollout.network_passes.tolist() == [3.0, 3.0]
        noise = ImageNoise(5, 2, np.array([3, 4]), np.array([0, 0]), (4, 8, 8))
        first = torch.from_numpy(noise.draw())
        draw = "diffusers.schedulers.scheduling_lcm.randn_tensor"
        with patch(draw, lambda *_, noise=noise, **__: torch.from_numpy(noise.draw())):
            theirs = pipeline(
                list(PROMPTS.texts), latents=first, num_inference_steps=3, guidance_scale=scale, output_type="np"
            ).images
        assert np.abs(rollout.images.astype(int) - np.round(theirs * 255)).max() <= 1
        assert np.mean((rollout.images > 0) & (rollout.images < 255)) > 0.2, "saturated pictures are all equal"
        drawn.append(rollout.images.astype(int))
    assert np.abs(drawn[0] - drawn[1]).max() > 1


def test_every_condition_matters(folder: Path, tmp_path: Path) -> None:
    policy: Any = build_policy(model(folder), FULL, seed=0, keep_reference=False)
    conditions = policy.encode(["a star", "two large blue circles"])
    fields, latents = conditions.fields, torch.randn(2, 4, 8, 8)
    assert {name: tuple(value.shape) for name, value in fields.items()} == {
        "states": (2, 8, 24),
        "pooled": (2, 16),
        "time_ids": (2, 6),
    }
    assert fields["time_ids"].tolist() == [[32, 32, 0, 0, 32, 32]] * 2
    empty = conditions.empty
    assert not empty["states"].any() and not empty["pooled"].any()
    assert torch.equal(empty["time_ids"], fields["time_ids"][:1])
    with torch.no_grad():
        plain = policy.output(latents, torch.tensor([500.0, 20.0]), conditions, 3.0)
        for part in (conditions.fields, conditions.empty):
            for name, value in part.items():
                changed = {**part, name: value + 1.0}
                other = dataclasses.replace(
                    conditions, **{"fields" if part is conditions.fields else "empty": changed}
                )
                difference = policy.output(latents, torch.tensor([500.0, 20.0]), other, 3.0) - plain
                assert difference.abs().max() > 1e-4, name


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_log_ratios_are_those_of_independent_gaussians(folder: Path, tmp_path: Path, name: str) -> None:
    """DDPM's of a network that predicts v from no signal at all."""
    if name == "ddpm":
        folder = Path(shutil.copytree(folder, tmp_path / "model"))
        changes = {**V_PREDICTION, "rescale_betas_zero_snr": True}
        edit("scheduler/scheduler_config.json", **changes)(folder)
    check_log_ratios(model(folder), settings(name, guidance_scale=3.0 if name in ("ddim", "ddpm") else 1.0))


@pytest.mark.slow
def test_the_two_pass_gradient_is_that_of_autodiff(folder: Path) -> None:
    check_gradients(model(folder), settings("last steps without noise"))


def test_the_ratio_guard_stops_a_learner_with_other_weights(folder: Path) -> None:
    sampler = build_sampler(model(folder), FULL, settings(), seed=0, recorder=TrajectoryRecorder())
    rollout = scored(sampler.sample(PROMPTS, 2, seed=3))
    policy = build_policy(model(folder), FULL, seed=0, keep_reference=False)
    policy.weights.bind(moved(policy.weights.export(0), 0.2))
    learner = build_learner(policy, policy.process.transitions(settings()), 1.0, FULL, {"name": "prdp", "beta": 1.0})
    with pytest.raises(RatioError, match=r"image \d+, step \d+ \(time \d+\)"):
        learner.update(rollout)


@pytest.mark.parametrize(("dtype", "autocast"), [("bfloat16", None), ("float32", "float16")])
def test_the_noise_of_half_precision_is_far_below_the_clip(folder: Path, dtype: str, autocast: str | None) -> None:
    """Of evidence in the clip range that the paper's large-scale runs have."""
    learner = dataclasses.replace(LORA, autocast=autocast)
    half = model(folder, dtype=dtype)
    rollout = scored(
        build_sampler(half, learner, settings(), seed=0, recorder=TrajectoryRecorder()).sample(ONE, 2, seed=3)
    )
    policy = build_policy(half, learner, seed=0, keep_reference=False, only_network=True)
    objective = {"name": "prdp", "beta": 1e-3, "clip_range": 1e-4}
    metrics = build_learner(policy, policy.process.transitions(settings()), 1.0, learner, objective).update(rollout)
    assert 0 < metrics["evidence_noise"] < 1e-5
    assert metrics["ratio_error"] < 1e-5


@pytest.mark.parametrize(("force_upcast", "exact"), [(True, True), (False, False)])
def test_the_vae_computes_in_float32_where_it_says_so(folder: Path, force_upcast: bool, exact: bool) -> None:
    policy: Any = build_policy(model(folder, dtype="bfloat16"), FULL, seed=0, keep_reference=False)
    policy.pipeline.vae.register_to_config(force_upcast=force_upcast)
    latents = torch.randn(1, *policy.latent_shape)
    found = policy.decode(latents)
    assert policy.pipeline.vae.dtype == torch.bfloat16
    with upcast(policy.pipeline.vae):
        assert np.array_equal(policy.decode(latents), found) == exact


def test_images_become_latents_with_the_statistics_of_the_vae(tmp_path: Path) -> None:
    pipeline = narrow_xl()
    pipeline.vae.register_to_config(**STATISTICS)
    pipeline.save_pretrained(tmp_path)
    policy: Any = build_policy(model(tmp_path), FULL, seed=0, keep_reference=False)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    with torch.no_grad():
        mean = pipeline.vae.encode(torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mode()
    shift, spread = (torch.tensor(STATISTICS[name]).view(1, 4, 1, 1) for name in ("latents_mean", "latents_std"))
    expected = (mean - shift) * pipeline.vae.config.scaling_factor / spread
    torch.testing.assert_close(policy.encode_images(images), expected)
    torch.testing.assert_close(policy._for_vae(expected), mean)


def test_prompts_are_encoded_alike_in_any_batch(folder: Path) -> None:
    policy = build_policy(model(folder), FULL, seed=0, keep_reference=False)
    together = policy.encode(["a star", "two large blue circles"])
    alone = policy.encode(["two large blue circles"])
    for name, value in alone.fields.items():
        torch.testing.assert_close(value, together[np.array([1])].fields[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("learner", "name", "guidance_scale"),
    [(FULL, "last steps without noise", 3.0), (LORA, "ddpm", 1.0)],
)
def test_the_program_beside_the_weights_makes_the_pictures_of_the_sampler(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    learner: LearnerConfig,
    name: str,
    guidance_scale: float,
) -> None:
    sampling, wide = settings(name, guidance_scale=guidance_scale), model(folder, width=48)
    policy: Any = build_policy(wide, learner, seed=0, keep_reference=False)
    start = Sampler(policy, sampling).sample(ONE, 1, 5, trajectory=False).images[0]
    policy.weights.bind(moved(policy.weights.export(0), 0.1 if learner is FULL else 0.5))
    policy.save(tmp_path / "weights")
    expected = Sampler(policy, sampling).sample(ONE, 1, 5, trajectory=False).images[0]
    assert np.abs(expected.astype(int) - start).max() > 3
    text = policy.usage(wide, sampling, learner.mode, tmp_path / "weights", "a star")
    noise = ImageNoise(5, 0, np.array([0]), np.array([0]), policy.latent_shape)
    picture = run_program(text, tmp_path, monkeypatch, noise)
    assert picture.shape == (32, 48, 3)
    assert np.abs(picture.astype(int) - expected).max() <= 1


def of_trainers(file: Path, folder: Path) -> Path:
    """A file of diffusers under the names that trainers give to layers of Stable Diffusion XL, those of its authors."""
    blocks = {
        "down_blocks.1.attentions.0": "input_blocks.3.1",
        "mid_block.attentions.0": "middle_block.1",
        "up_blocks.0.attentions.0": "output_blocks.0.1",
        "up_blocks.0.attentions.1": "output_blocks.1.1",
    }
    found: dict[str, torch.Tensor] = {}
    for name, value in load_file(file).items():
        layer, _, part = name.removeprefix("unet.").partition(".lora_")
        block = next(one for one in blocks if layer.startswith(f"{one}."))
        key = f"lora_unet_{layer.replace(block, blocks[block]).replace('.', '_')}"
        found[f"{key}.lora_{'down' if part.startswith('A') else 'up'}.weight"] = value
        found[f"{key}.alpha"] = torch.tensor(3.0)
    save_file(found, folder / "trainers.safetensors")
    return folder / "trainers.safetensors"


@pytest.mark.slow
def test_frozen_adapters_are_those_of_diffusers(folder: Path, tmp_path: Path) -> None:
    policy: Any = build_policy(model(folder), LORA, seed=0, keep_reference=False)
    policy.weights.bind(moved(policy.weights.export(0), 0.3))
    policy.save(tmp_path)
    files = [tmp_path / LORA_FILE, of_trainers(tmp_path / LORA_FILE, tmp_path)]
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    for name, file in zip("ab", files, strict=True):
        pipeline.load_lora_weights(tmp_path, weight_name=file.name, adapter_name=name)
    pipeline.set_adapters(["a", "b"], [0.7, -0.4])
    adapted = model(folder, adapters=[str(file) for file in files], adapter_weights=[0.7, -0.4])
    family_of(adapted).check(adapted)
    ours: Any = build_policy(adapted, LORA, seed=0, keep_reference=False)
    latents, conditions = torch.randn(1, 4, 8, 8), policy.encode(["a star"])
    with torch.no_grad():
        found, expected, start = (
            policy.output(latents, torch.tensor([500.0]), conditions, 1.0, network)
            for network in (ours.network, pipeline.unet, narrow_xl().unet)
        )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (found - start).abs().max() > 1e-2


def edit(file: str, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**content, **changes}))

    return change


def without(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "text_encoder_2" / "model.safetensors"
        tensors = load_file(file)
        del tensors[name]
        save_file(tensors, file, metadata={"format": "pt"})

    return change


def unet(**changes: Any) -> Callable[[Path], None]:
    return edit("unet/config.json", **changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: shutil.rmtree(path / "text_encoder_2"), "names text_encoder_2, but there is no folder"),
        (edit("model_index.json", text_encoder=[None, None]), "text_encoder is of class None: must be CLIPTextModel"),
        (edit("model_index.json", _class_name="StableDiffusionXLImg2ImgPipeline"), "only StableDiffusionXLPipeline is"),
        (edit("model_index.json", requires_aesthetics_score=True), "model_index.json: requires_aesthetics_score=true"),
        (edit("model_index.json", force_zeros_for_empty_prompt=1), "force_zeros_for_empty_prompt=1: must be true or"),
        (unet(addition_embed_type=None), r"unet: addition_embed_type=None: must be text_time"),
        (unet(addition_embed_type="image"), r"unet: addition_embed_type=image: must be text_time"),
        (unet(projection_class_embeddings_input_dim=36), r"=36: must be the projection_dim of text_encoder_2, 16"),
        (unet(time_cond_proj_dim=1), "time_cond_proj_dim=1: must be null or a whole number of at least 4"),
        (unet(in_channels=9), "in_channels=9: must be 4, the VAE's latent_channels"),
        (unet(cross_attention_dim=16), "cross_attention_dim=16: must be 24, the hidden_size of the text encoders tog"),
        (edit("vae/config.json", latents_mean=[0.0] * 4), r"vae: latents_std=None: must be 4 numbers.* or null with"),
        (edit("vae/config.json", latents_mean=[0.0] * 4, latents_std=[1, 1, 1, 0]), "latents_std=.*: must be 4 num"),
        (edit("vae/config.json", shift_factor=0.1), "vae: shift_factor=0.1: must be null: StableDiffusionXLPipeline"),
        (edit("scheduler/scheduler_config.json", rescale_betas_zero_snr=True), "_snr=True: must be false"),
        (edit("scheduler/scheduler_config.json", _class_name="EDMEulerScheduler"), "_class_name=EDMEulerScheduler"),
        (edit("tokenizer_2/tokenizer_config.json", tokenizer_class="T5Tokenizer"), "tokenizer_2: .*=T5Tokenizer"),
        (without("text_projection.weight"), "text_encoder_2: the weights do not fit.*text_projection.weight"),
    ],
)
def test_folders_that_are_not_computed_are_refused(
    folder: Path, tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    path = shutil.copytree(folder, tmp_path / "model")
    change(path)
    with pytest.raises(StartError, match=message):
        family_of(model(path)).check(model(path))


def test_what_other_keys_ask_for_is_refused(folder: Path) -> None:
    for changes, message in (
        ({"family": "stable_diffusion"}, r"of a StableDiffusionXLPipeline; .*; set model\.family=stable_diffusion_xl"),
        ({"max_sequence_length": 77}, "model.max_sequence_length=77: must be null for model.family="),
        ({"width": 36}, "model.width=36: must be a multiple of 8 pixels, such as 32 or 40"),
        ({"variant": "fp16"}, "only those without a variant: set model.variant=null"),
    ):
        with pytest.raises(StartError, match=message):
            family_of(model(folder, **changes)).check(model(folder, **changes))
    jax = dataclasses.replace(LORA, framework="jax", lora_targets=["attn7"])
    problems = family_of(model(folder)).learner_problems(model(folder), jax)
    assert "learner.framework=jax: must be torch for model.family=stable_diffusion_xl" in problems
    assert any("'attn7' matches no layer" in problem for problem in problems)


def test_a_pickled_folder_is_told_how_to_be_converted_by_its_own_pipeline(folder: Path, tmp_path: Path) -> None:
    path = shutil.copytree(folder, tmp_path / "model")
    (path / "unet" / "diffusion_pytorch_model.safetensors").rename(path / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(StartError, match=r"from diffusers import StableDiffusionXLPipeline as P; "):
        family_of(model(path)).check(model(path))


def test_ddpm_and_ddim_are_scheduled_by_the_betas_alone(folder: Path) -> None:
    """Euler's own spacing and offset stay; latents are never clipped."""
    policy: Any = build_policy(model(folder), LORA, seed=0, keep_reference=False)
    config = policy.scheduler_config
    assert (config["steps_offset"], config["timestep_spacing"], config["clip_sample"]) == (1, "leading", False)
    table = policy.process.transitions(settings("ddpm", guidance_scale=1.0))
    theirs = DDPMScheduler.from_config({**config, "variance_type": "fixed_small", "timestep_spacing": "trailing"})
    theirs.set_timesteps(4)
    assert table.times.tolist() == theirs.timesteps.tolist()
