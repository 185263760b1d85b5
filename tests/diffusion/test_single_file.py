"""Checkpoints of Stable Diffusion in one file: as the folder with the same weights, and what of them is refused."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deep_pipeline import deep_pipeline
from narrow_transformers import narrow_flux
from narrow_xl import narrow_xl
from safetensors.torch import load_file, save_file
from usage_program import run_program

from prdp.config import LearnerConfig, ModelConfig, SamplerConfig
from prdp.diffusion import build_policy, build_sampler, family_of
from prdp.diffusion.latent_space import vae_digest
from prdp.diffusion.noise import ImageNoise
from prdp.diffusion.original_names import save_single_file
from prdp.diffusion.pipeline_formats import STABLE_DIFFUSION
from prdp.diffusion.sampler import Sampler
from prdp.diffusion.single_file import content_problems, pipeline_of_file
from prdp.evaluation.loading import build_evaluated_sampler
from prdp.evaluation.models import find_models, model_digest
from prdp.support.errors import StartError
from prdp.types import PromptBatch

ONE = PromptBatch(0, 0, ("a star",), ({},))
SETTINGS = SamplerConfig(steps=3, guidance_scale=2.0)
LORA = LearnerConfig(lora_rank=2)
PIPELINES = {"stable_diffusion": deep_pipeline, "stable_diffusion_xl": narrow_xl}


@pytest.fixture(scope="module", params=PIPELINES)
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelConfig, ModelConfig]:
    """A folder, and a file with its weights beside a folder with its configurations alone."""
    place = tmp_path_factory.mktemp(request.param)
    pipeline = PIPELINES[request.param]()
    pipeline.save_pretrained(place / "whole")
    shutil.copytree(place / "whole", place / "settings", ignore=shutil.ignore_patterns("*.safetensors"))
    file = save_single_file(pipeline, place / "model.safetensors")
    whole = ModelConfig(family=request.param, path=str(place / "whole"), device="cpu")
    return whole, dataclasses.replace(whole, path=str(file), config=str(place / "settings"))


@pytest.mark.slow
def test_a_file_draws_what_the_folder_draws(models: tuple[ModelConfig, ModelConfig]) -> None:
    folder, file = models
    family_of(file).check(file)
    assert family_of(file).learner_problems(file, LORA) == []
    expected, found = (
        build_sampler(one, LORA, SETTINGS, seed=0).sample(ONE, 1, 5, trajectory=False).images for one in models
    )
    assert np.abs(found.astype(int) - expected).max() <= 1
    bare: Any = build_policy(file, LORA, seed=0, keep_reference=False, only_network=True)
    parts = {name for name, part in bare.pipeline.components.items() if isinstance(part, torch.nn.Module)}
    assert parts == {"unet"}
    assert bare.latent_shape == build_policy(folder, LORA, seed=0, keep_reference=False).latent_shape


@pytest.mark.slow
def test_what_is_learned_goes_out_as_from_a_folder(
    models: tuple[ModelConfig, ModelConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A LoRA with the program that loads the file, and a whole pipeline."""
    _, file = models
    lora: Any = build_policy(file, LORA, seed=0, keep_reference=False)
    lora.save(tmp_path / "weights")
    text = lora.usage(file, SETTINGS, "lora", tmp_path / "weights", "a star")
    noise = ImageNoise(5, 0, np.array([0]), np.array([0]), lora.latent_shape)
    picture = run_program(text, tmp_path, monkeypatch, noise).astype(int)
    expected = Sampler(lora, SETTINGS).sample(ONE, 1, 5, trajectory=False).images[0]
    assert np.abs(picture - expected).max() <= 1
    learner = LearnerConfig(mode="full")
    full: Any = build_policy(file, learner, seed=0, keep_reference=False, only_network=True)
    full.save(tmp_path / "pipeline")
    (evaluated,) = find_models([str(tmp_path / "pipeline")], file)
    assert evaluated.model.config is None
    sampler = build_evaluated_sampler(evaluated, SETTINGS, "float32", "cpu", None, kl=False)
    assert np.abs(sampler.sample(ONE, 1, 5, trajectory=False).images[0].astype(int) - expected).max() <= 1


def test_a_lora_goes_out_in_one_file(models: tuple[ModelConfig, ModelConfig], tmp_path: Path) -> None:
    """Read by this package, which reads it by diffusers' from_single_file."""
    folder, file = models
    lora: Any = build_policy(folder, LORA, seed=0, keep_reference=False)
    with torch.no_grad():
        for name, value in lora.weights.parameters.items():
            value.normal_(std=0.1) if "lora_B" in name else None
    conditions, latents = lora.encode(["a star", "a moon"]), torch.randn(2, *lora.latent_shape)

    def output(policy: Any) -> torch.Tensor:
        with torch.no_grad():
            return policy.output(latents, torch.tensor([30.0, 700.0]), conditions, 3.0)

    expected, before = output(lora), lora.decode(latents)
    lora.save_single_file(tmp_path / "merged.safetensors", "float32")
    merged = dataclasses.replace(file, path=str(tmp_path / "merged.safetensors"))
    family_of(merged).check(merged)
    again: Any = build_policy(merged, LearnerConfig(mode="frozen"), seed=0, keep_reference=False)
    torch.testing.assert_close(output(again), expected, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(again.decode(latents), before)
    for name, value in lora.encode(["a star"]).fields.items():
        torch.testing.assert_close(again.encode(["a star"]).fields[name], value, msg=name)
    base: Any = build_policy(folder, LearnerConfig(mode="frozen"), seed=0, keep_reference=False)
    assert (output(base) - expected).abs().max() > 1e-3


def test_the_text_encoder_of_stable_diffusion_2_has_the_names_of_open_clip(tmp_path: Path) -> None:
    """Read back by diffusers: every tensor of every part is as it was, those of the VAE's attention too."""
    pipeline = deep_pipeline()
    unet, vae = ({key: value for key, value in part.config.items() if not key.startswith("_")} for part in
                 (pipeline.unet, pipeline.vae))  # fmt: skip
    unet |= {"use_linear_projection": True, "attention_head_dim": [1, 2, 2, 2]}
    vae |= {"mid_block_add_attention": True}
    pipeline.register_modules(unet=type(pipeline.unet)(**unet), vae=type(pipeline.vae)(**vae))
    pipeline.save_pretrained(tmp_path / "whole")
    file = save_single_file(pipeline, tmp_path / "model.safetensors")
    names = load_file(file).keys()
    assert "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight" in names
    assert not any("text_model" in name for name in names)
    again = pipeline_of_file(file, tmp_path / "whole", STABLE_DIFFUSION, safety_checker=None)
    for part in STABLE_DIFFUSION.components:
        for name, value in getattr(pipeline, part).state_dict().items():
            assert getattr(again, part).state_dict()[name].equal(value), f"{part}: {name}"


V, ZERO = {"prediction_type": "v_prediction"}, {"rescale_betas_zero_snr": True}


@pytest.mark.parametrize(
    ("scheduler", "marks", "metadata", "message"),
    [
        ({}, ("edm_vpred.sigma_max",), {}, r"edm_vpred\.sigma_max: is of a network of EDM's process"),
        ({}, ("v_pred",), {}, r"prediction_type=epsilon: must be v_prediction, as .* has the tensor v_pred"),
        (V, ("v_pred", "ztsnr"), {}, r"rescale_betas_zero_snr=None: must be true, as .* has the tensor ztsnr"),
        ({}, (), {"modelspec.prediction_type": "v"}, r"must be v_prediction, as .* has modelspec\.prediction_type=v"),
        (V, (), {"modelspec.prediction_type": "epsilon"}, r"prediction_type=v_prediction: must be epsilon"),
        (V | ZERO, ("v_pred", "ztsnr"), {"modelspec.prediction_type": "v"}, None),
        (V, (), {}, None),
        ({}, (), {"modelspec.prediction_type": "unknown"}, None),
    ],
)
def test_a_file_that_says_what_it_predicts_is_believed(
    tmp_path: Path, scheduler: dict[str, Any], marks: tuple[str, ...], metadata: dict[str, str], message: str | None
) -> None:
    for part, name, content in (("scheduler", "scheduler_config.json", scheduler), ("unet", "config.json", {})):
        (tmp_path / part).mkdir()
        (tmp_path / part / name).write_text(json.dumps(content))
    file = tmp_path / "x.safetensors"
    save_file({**{mark: torch.zeros(0) for mark in marks}, "x": torch.zeros(1)}, file, metadata=metadata)
    problems = content_problems(file, tmp_path)
    assert not problems if message is None else re.search(message, problems[0]), problems


def test_a_file_that_is_written_says_that_its_network_predicts_v(tmp_path: Path) -> None:
    """As ComfyUI looks for it."""
    file = save_single_file(narrow_xl({**V, **ZERO}), tmp_path / "v.safetensors")
    assert load_file(file)["v_pred"].numel() == load_file(file)["ztsnr"].numel() == 0
    assert "v_pred" not in load_file(save_single_file(narrow_xl(), tmp_path / "epsilon.safetensors"))


def test_evaluations_and_sets_know_it_by_its_weights(models: tuple[ModelConfig, ModelConfig], tmp_path: Path) -> None:
    _, file = models
    tensors = load_file(file.path)
    name = "first_stage_model.decoder.conv_out.bias"
    save_file({**tensors, name: tensors[name] + 1}, tmp_path / "other.safetensors")
    other = dataclasses.replace(file, path=str(tmp_path / "other.safetensors"))
    assert vae_digest(other) != vae_digest(file) == vae_digest(dataclasses.replace(file, height=64))
    digests = [model_digest(find_models(["base"], one)[0]) for one in (file, other)]
    assert digests[0] != digests[1]


def test_what_makes_no_pipeline_is_refused(models: tuple[ModelConfig, ModelConfig], tmp_path: Path) -> None:
    folder, file = models
    tensors = load_file(file.path)
    first = "model.diffusion_model.input_blocks.0.0.weight"
    wide = {**tensors, first: tensors[first].repeat(1, 3, 1, 1)[:, :9].contiguous()}
    lacking = {name: value for name, value in tensors.items() if "first_stage_model.decoder.mid" not in name}
    for content, message in (
        (wide, r"input_blocks\.0\.0\.weight takes 9 channels: must be 4, as the configurations of"),
        (tensors | {"model.diffusion_model.input_blocks.99.0.op.bias": torch.ones(1)}, "are of another architecture"),
        (lacking, r"broken\.safetensors with the configurations of .*: it lacks weights of a network"),
        ({"lora_unet_x.lora_down.weight": tensors[first]}, "is a LoRA, which model.adapters takes"),
    ):
        save_file(content, tmp_path / "broken.safetensors")
        broken = dataclasses.replace(file, path=str(tmp_path / "broken.safetensors"))
        with pytest.raises(StartError, match=message):
            family_of(broken).check(broken)
    (tmp_path / "old.ckpt").write_bytes(b"x")
    (tmp_path / "half.safetensors").write_bytes(b"x")
    for changes, message in (
        ({"config": None}, "is one file, which has weights alone: set model.config to a folder"),
        ({"config": file.path}, r"model\.config=.* is a file, must be a folder in diffusers format"),
        ({"config": str(tmp_path)}, r"model\.config=.*model_index\.json is missing"),
        ({"path": str(tmp_path / "old.ckpt")}, r"is pickled and never read here.*P\.from_single_file\('.*old\.ckpt'"),
        ({"path": str(tmp_path / "half.safetensors")}, "is not a whole safetensors file"),
        ({"path": str(tmp_path / "hal.safetensors")}, r"hal\S+: there is no such file\. Did you mean .*/half\."),
        ({"path": str(tmp_path)}, r"model\.config=.*: must be null"),
        ({"path": str(tmp_path), "config": None}, r"model_index\.json is missing.*broken\.safetensors in it the path"),
        ({"path": folder.path}, r"model\.config=.*: must be null"),
    ):
        chosen = dataclasses.replace(file, **changes)  # type: ignore[arg-type]
        with pytest.raises(StartError, match=message):
            family_of(chosen).check(chosen)


def test_numbers_that_are_not_finite_are_told_as_the_weights_are_read(
    models: tuple[ModelConfig, ModelConfig], tmp_path: Path
) -> None:
    folder, file = models
    tensors = load_file(file.path)
    tensors["model.diffusion_model.time_embed.0.bias"][1:3] = torch.nan
    save_file(tensors, tmp_path / "damaged.safetensors")
    shutil.copytree(folder.path, tmp_path / "damaged")
    part = tmp_path / "damaged" / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(part)
    tensors["decoder.conv_in.bias"][0] = -3.0e38
    save_file(tensors, part)
    damaged = dataclasses.replace(file, path=str(tmp_path / "damaged.safetensors"))
    too_large = dataclasses.replace(folder, path=str(tmp_path / "damaged"), dtype="float16")
    for model, tensor in (
        (damaged, r"unet\.time_embedding\.linear_1\.bias: 2"), (too_large, r"vae\.decoder\.conv_in\.bias: 1"),
    ):  # fmt: skip
        with pytest.raises(StartError, match=rf"{tensor} of \d+ numbers are not finite in {model.dtype}: the file is"):
            build_policy(model, LORA, seed=0, keep_reference=False)


def test_other_families_have_no_single_files(tmp_path: Path) -> None:
    narrow_flux().save_pretrained(tmp_path / "flux")
    save_file({"x": torch.zeros(1)}, tmp_path / "flux.safetensors")
    model = ModelConfig(family="flux", path=str(tmp_path / "flux.safetensors"), config=str(tmp_path / "flux"))
    with pytest.raises(StartError, match=r"is a file, must be a folder in diffusers format: of FLUX\.1-dev"):
        family_of(model).check(model)
