"""Stable Diffusion 3.5, FLUX.1 and Z-Image, narrow and random, against diffusers' pipelines and independent maths."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from narrow_transformers import NARROW, TEXT_TOKENS, narrow_flux
from policy_checks import FULL, PROMPTS, check_gradients, check_log_ratios, moved, scored
from safetensors.torch import load_file, save_file
from usage_program import run_program

from prdp.config import LearnerConfig, ModelConfig, SamplerConfig
from prdp.diffusion import build_policy, build_sampler, family_of
from prdp.diffusion.flux import packed, positions, unpacked
from prdp.diffusion.noise import ImageNoise
from prdp.diffusion.sampler import Sampler
from prdp.evidence.trajectory import TrajectoryRecorder
from prdp.learners import build_learner
from prdp.learners.guards import RatioError
from prdp.support.errors import StartError
from prdp.types import PromptBatch

ONE = PromptBatch(0, 0, ("a star",), ({},))
LORA = LearnerConfig(lora_rank=4, lora_alpha=6.0, lora_targets=["to_q", "to_out.0"])
SAMPLERS: dict[str, dict[str, Any]] = {
    "flow_sde": {"kind": "flow_sde", "eta": 0.7, "deterministic_final_steps": 1},
    "cps": {"kind": "cps", "eta": 0.8},
}
FIELDS = {
    "stable_diffusion_3": {"states": (2, 13, 32), "pooled": (2, 24)},
    "flux": {"states": (2, 5, 24), "pooled": (2, 8)},
    "z_image": {"states": (2, 24, 16), "tokens": (2,)},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    found = {name: tmp_path_factory.mktemp(name) for name in NARROW}
    for name, folder in found.items():
        NARROW[name]().save_pretrained(folder)
    return found


@pytest.fixture(params=NARROW)
def base(request: pytest.FixtureRequest, folders: Mapping[str, Path]) -> ModelConfig:
    return model(request.param, folders[request.param])


def model(family: str, folder: Path, **changes: Any) -> ModelConfig:
    settings = {
        "family": family, "path": str(folder), "max_sequence_length": TEXT_TOKENS[family], "height": 32, "width": 32,
        "device": "cpu",
    }  # fmt: skip
    return ModelConfig(**{**settings, **changes})


def settings(name: str = "cps", **changes: Any) -> SamplerConfig:
    return SamplerConfig(**{**SAMPLERS[name], "steps": 4, "guidance_scale": 1.0, **changes})


def guided(scale: float) -> dict[str, Any]:
    return {"guidance_scale": scale}


@pytest.mark.parametrize(
    ("family", "layout", "scale", "call"),
    [
        ("stable_diffusion_3", {}, 1.0, guided(1.0)),
        ("stable_diffusion_3", {"use_dynamic_shifting": True}, 4.0, guided(4.0)),
        ("stable_diffusion_3", {}, 4.0, {**guided(4.0), "negative_prompt": "large stars"}),
        ("flux", {}, 3.5, guided(3.5)),
        ("flux", {"guidance": False}, 1.0, {}),
        ("flux", {"guidance": False, "shift": 3.0}, 4.0, {"negative_prompt": "", "true_cfg_scale": 4.0}),
        ("z_image", {}, 1.0, guided(0.0)),
        ("z_image", {"shift": 6.0}, 5.0, guided(4.0)),
        ("z_image", {}, 5.0, {**guided(4.0), "negative_prompt": "large stars"}),
    ],
)
def test_pictures_equal_those_of_diffusers(
    tmp_path: Path, family: str, layout: dict[str, Any], scale: float, call: dict[str, Any]
) -> None:
    pipeline = NARROW[family](**layout)
    pipeline.save_pretrained(tmp_path)
    negative = call.get("negative_prompt") or None
    sampler = SamplerConfig(kind="euler", steps=4, guidance_scale=scale, negative_prompt=negative, microbatch=3)
    ours = build_sampler(model(family, tmp_path, width=48), FULL, sampler, seed=0)
    pictures = ours.sample(PROMPTS, 1, seed=5, trajectory=False).images
    latents = torch.from_numpy(ImageNoise(5, 2, np.array([3, 4]), np.array([0, 0]), (4, 8, 12)).draw())
    pipeline.set_progress_bar_config(disable=True)
    if "negative_prompt" in call:
        call["negative_prompt"] = [call["negative_prompt"]] * 2
    theirs = pipeline(
        list(PROMPTS.texts),
        height=32,
        width=48,
        latents=packed(latents) if family == "flux" else latents,
        num_inference_steps=4,
        max_sequence_length=TEXT_TOKENS[family],
        output_type="np",
        **call,
    ).images
    assert np.abs(pictures.astype(int) - np.round(theirs * 255)).max() <= 1
    assert np.ptp(pictures) > 50
    assert np.mean((pictures > 0) & (pictures < 255)) > 0.2, "saturated pictures would be equal whatever is computed"


def test_every_condition_matters_in_any_batch(base: ModelConfig) -> None:
    policy: Any = build_policy(base, FULL, seed=0, keep_reference=False)
    conditions = policy.encode(["a star", "two large blue circles"])
    assert {name: tuple(value.shape) for name, value in conditions.fields.items()} == FIELDS[base.family]
    latents, times = torch.randn(2, 4, 8, 8), torch.tensor([0.8, 0.2])
    with torch.no_grad():
        plain = policy.output(latents, times, conditions, 3.0)
        alone = policy.output(latents[1:], times[1:], policy.encode(["two large blue circles"]), 3.0)
        torch.testing.assert_close(plain[1:], alone, rtol=1e-4, atol=1e-5)
        for part, changed in (("fields", conditions.fields), ("empty", conditions.empty)):
            if part == "empty" and base.family == "flux":
                continue  # the guidance is an input
            for name, value in changed.items():
                other = {**changed, name: value + (value.new_tensor(1) if name != "tokens" else -1)}
                difference = policy.output(latents, times, dataclasses.replace(conditions, **{part: other}), 3.0)
                assert (difference - plain).abs().max() > 1e-5, name


def test_the_guidance_that_a_network_takes_as_an_input_is_one_pass(folders: Mapping[str, Path], tmp_path: Path) -> None:
    policy: Any = build_policy(model("flux", folders["flux"]), FULL, seed=0, keep_reference=False)
    conditions, rows = policy.encode(["a star"]), []
    count = lambda _, __, given: rows.append(len(given["hidden_states"]))  # noqa: E731
    policy.network.register_forward_pre_hook(count, with_kwargs=True)
    latents, times = torch.randn(1, 4, 8, 8), torch.tensor([0.5])
    with torch.no_grad():
        outputs = [policy.output(latents, times, conditions, scale) for scale in (0.0, 1.0, 3.5)]
    assert rows == [1, 1, 1]
    assert all((left - right).abs().max() > 1e-5 for left, right in itertools.pairwise(outputs))
    narrow_flux(guidance=False).save_pretrained(tmp_path)
    for folder, branches in ((folders["flux"], 1), (tmp_path, 2)):
        chosen: Any = family_of(model("flux", folder))
        assert [chosen.branches_of(model("flux", folder), scale) for scale in (1.0, 3.5)] == [1, branches]


def test_latents_are_packed_as_diffusers_packs_them() -> None:
    latents = torch.randn(2, 16, 6, 10)
    assert torch.equal(packed(latents), FluxPipeline._pack_latents(latents, 2, 16, 6, 10))
    assert torch.equal(unpacked(packed(latents), (6, 10)), latents)
    assert torch.equal(positions(latents), FluxPipeline._prepare_latent_image_ids(2, 3, 5, "cpu", torch.float32))


@pytest.mark.parametrize(("name", "scale"), [("cps", 3.0), ("flow_sde", 1.0)])
def test_log_ratios_are_those_of_independent_gaussians(base: ModelConfig, name: str, scale: float) -> None:
    check_log_ratios(base, settings(name, guidance_scale=scale))


@pytest.mark.slow
def test_the_two_pass_gradient_is_that_of_autodiff(base: ModelConfig) -> None:
    check_gradients(base, settings("flow_sde"))


def test_the_ratio_guard_stops_a_learner_with_other_weights(base: ModelConfig) -> None:
    rollout = scored(
        build_sampler(base, FULL, settings(), seed=0, recorder=TrajectoryRecorder()).sample(PROMPTS, 2, seed=3)
    )
    policy = build_policy(base, FULL, seed=0, keep_reference=False, only_network=True)
    policy.weights.bind(moved(policy.weights.export(0), 0.2))
    learner = build_learner(policy, policy.process.transitions(settings()), 1.0, FULL, {"name": "prdp", "beta": 1.0})
    with pytest.raises(RatioError, match=r"image \d+, step \d+ \(time 0\.\d+\)"):
        learner.update(rollout)


@pytest.mark.parametrize(
    ("dtype", "autocast"), [("bfloat16", None), ("float32", "bfloat16"), ("float16", None), ("float32", "float16")]
)
def test_the_noise_of_half_precision_is_far_below_the_clip(
    base: ModelConfig, dtype: str, autocast: str | None
) -> None:
    """Of evidence in the clip range that the paper's large-scale runs have."""
    learner, half = dataclasses.replace(LORA, autocast=autocast), dataclasses.replace(base, dtype=dtype)
    rollout = scored(
        build_sampler(half, learner, settings(), seed=0, recorder=TrajectoryRecorder()).sample(ONE, 2, seed=3)
    )
    policy = build_policy(half, learner, seed=0, keep_reference=False, only_network=True)
    objective = {"name": "prdp", "beta": 1e-3, "clip_range": 1e-4}
    metrics = build_learner(policy, policy.process.transitions(settings()), 1.0, learner, objective).update(rollout)
    assert 0 < metrics["evidence_noise"] < 1e-5
    assert metrics["ratio_error"] < 1e-5


@pytest.mark.parametrize(("mode", "scale"), [("lora", 1.0), ("full", 3.0)])
def test_the_program_beside_the_weights_makes_the_pictures_of_the_sampler(
    base: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, scale: float
) -> None:
    sampling, learner = settings("flow_sde", guidance_scale=scale), dataclasses.replace(LORA, mode=mode)
    wide = dataclasses.replace(base, width=48)
    policy: Any = build_policy(wide, learner, seed=0, keep_reference=False)
    policy.weights.bind(moved(policy.weights.export(0), 0.1))
    policy.save(tmp_path / "weights")
    expected = Sampler(policy, sampling).sample(ONE, 1, 5, trajectory=False).images[0]
    noise = ImageNoise(5, 0, np.array([0]), np.array([0]), policy.latent_shape)
    text = policy.usage(wide, sampling, mode, tmp_path / "weights", "a star")
    picture = run_program(text, tmp_path, monkeypatch, noise)
    assert picture.shape == (32, 48, 3)
    assert np.abs(picture.astype(int) - expected).max() <= 1


def edit(file: str, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**content, **changes}))

    return change


def without(file: str, name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = load_file(folder / file)
        del tensors[name]
        save_file(tensors, folder / file, metadata={"format": "pt"})

    return change


def transformer(**changes: Any) -> Callable[[Path], None]:
    return edit("transformer/config.json", **changes)


SD3, FLUX, Z_IMAGE = NARROW
FLOW = "scheduler/scheduler_config.json"


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        (SD3, transformer(in_channels=9), "transformer: in_channels=9: must be 4, the VAE's latent_channels; networks"),
        (SD3, transformer(pooled_projection_dim=8), "pooled_projection_dim=8: must be 24, the projection_dim of text"),
        (SD3, transformer(joint_attention_dim=16), "joint_attention_dim=16: must be 32, the d_model of text_encoder_3"),
        (SD3, edit(FLOW, shift="3"), "scheduler: shift='3': must be a number above 0"),
        (SD3, edit(FLOW, num_train_timesteps=0), "num_train_timesteps=0: must be 1000, as networks of flows"),
        (Z_IMAGE, edit(FLOW, num_train_timesteps=500), "num_train_timesteps=500: must be 1000"),
        (SD3, transformer(pos_embed_max_size=4), r"asks for pos_embed\.pos_embed \[1, 16, 16\], found \[1, 64, 16\]"),
        (SD3, edit("model_index.json", tokenizer_3=[None, None]), "names text_encoder_3 and no tokenizer_3"),
        (Z_IMAGE, edit("text_encoder/config.json", num_hidden_layers=1), r"transformers makes no .*layer_types` \(2\)"),
        (SD3, edit(FLOW, shift_terminal=1.5), "scheduler: shift_terminal=1.5: must be null, or a number above 0 and"),
        (SD3, edit(FLOW, use_karras_sigmas=True, use_beta_sigmas=True), "scheduler: use_beta_sigmas=True: must be fal"),
        (FLUX, edit(FLOW, time_shift_type="odd"), "scheduler: time_shift_type='odd': must be exponential or linear"),
        (FLUX, edit(FLOW, max_shift=None), "scheduler: max_shift=None: must be a number"),
        (FLUX, edit(FLOW, base_image_seq_len=64), "scheduler: base_image_seq_len=64: must be below max_image_seq_len"),
        (SD3, edit("vae/config.json", shift_factor=None), "vae: shift_factor=None: must be a number, which Stable"),
        (SD3, edit("vae/config.json", latents_mean=[0.1] * 4), "latents_mean=.*: must be null: StableDiffusion3Pip"),
        (SD3, without("text_encoder_3/model.safetensors", "encoder.final_layer_norm.weight"), "do not fit.*final_la"),
        (SD3, edit("text_encoder_3/config.json", vocab_size=8), r"tokenizer_3: it has a token of number \d+: must be"),
        (FLUX, edit("model_index.json", _class_name="FluxFillPipeline"), "only FluxPipeline .*; of other families: St"),
        (FLUX, edit("model_index.json", text_encoder_2=[None, None]), "text_encoder_2 is of class None: must be T5Enc"),
        (FLUX, transformer(in_channels=96), "transformer: in_channels=96: must be 16, the VAE's latent_channels x 4"),
        (FLUX, transformer(pooled_projection_dim=9), "pooled_projection_dim=9: must be 8, the hidden_size of text_enc"),
        (FLUX, transformer(guidance_embeds=False, num_layers=2), r"asks for transformer_blocks\.1\."),
        (FLUX, edit("scheduler/scheduler_config.json", _class_name="DDIMScheduler"), "_class_name=DDIMScheduler: must"),
        (FLUX, edit("scheduler/scheduler_config.json", invert_sigmas=True), "scheduler: invert_sigmas=True: must be f"),
        (FLUX, transformer(quantization_config={"bits": 4}), "quantization_config=.*: must be null: only plain wei"),
        (Z_IMAGE, transformer(cap_feat_dim=8), "transformer: cap_feat_dim=8: must be 16, the hidden_size of text_enc"),
        (Z_IMAGE, transformer(siglip_feat_dim=8), "siglip_feat_dim=8: must be None, as it takes no images beside"),
        (Z_IMAGE, transformer(all_patch_size=[4]), r"all_patch_size=\[4\]: must hold 2"),
        (Z_IMAGE, lambda path: (path / "tokenizer" / "chat_template.jinja").unlink(), "tokenizer: it has no chat_temp"),
        (Z_IMAGE, edit("model_index.json", _class_name="ZImageInpaintPipeline"), "only ZImagePipeline is computed"),
    ],
)
def test_folders_that_are_not_computed_are_refused(
    folders: Mapping[str, Path], tmp_path: Path, family: str, change: Callable[[Path], None], message: str
) -> None:
    path = shutil.copytree(folders[family], tmp_path / "model")
    change(path)
    with pytest.raises(StartError, match=message):
        family_of(model(family, path)).check(model(family, path))


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        (SD3, {"height": 36}, "model.height=36: must be a multiple of 8 pixels and at most 64, such as 32 or 40"),
        (FLUX, {"width": 36}, "model.width=36: must be a multiple of 8 pixels, such as 32 or 40"),
        (Z_IMAGE, {"width": 136}, "model.width=136: .* and at most 128, such as 128"),
        (FLUX, {"max_sequence_length": 513}, "model.max_sequence_length=513: must be at most 512"),
        (Z_IMAGE, {"max_sequence_length": 97}, "model.max_sequence_length=97: .* positions for; at most 96"),
        (Z_IMAGE, {"max_sequence_length": None}, "model.max_sequence_length=null: 512 tokens are more than the trans"),
        (FLUX, {"family": SD3}, r"of a FluxPipeline; only StableDiffusion3Pipeline is .* set model\.family=flux"),
        (Z_IMAGE, {"family": "stable_diffusion", "max_sequence_length": None}, r"set model\.family=z_image"),
        (FLUX, {"variant": "fp16"}, "only those without a variant: set model.variant=null"),
    ],
)
def test_keys_that_do_not_fit_are_refused(
    folders: Mapping[str, Path], family: str, changes: dict[str, Any], message: str
) -> None:
    chosen = dataclasses.replace(model(family, folders[family]), **changes)
    with pytest.raises(StartError, match=message):
        family_of(chosen).check(chosen)


def test_what_no_layer_takes_is_told(base: ModelConfig) -> None:
    learner = dataclasses.replace(LORA, framework="jax", lora_targets=["attn7"])
    problems = family_of(base).learner_problems(base, learner)
    assert f"learner.framework=jax: must be torch for model.family={base.family}" in problems
    assert any("'attn7' matches no layer" in problem for problem in problems)
