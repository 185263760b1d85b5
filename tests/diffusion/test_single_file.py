"""Checkpoints of Stable Diffusion in one file: as the folder with the same weights, and what of them is refused."""

from __future__ import annotations

import dataclasses
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
from prdp.diffusion.sampler import Sampler
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
        (wide, r"broken\.safetensors with the configurations of .*conv_in\.weight|size mismatch|expected shape"),
        (lacking, r"broken\.safetensors with the configurations of .*: it lacks weights of a network"),
        ({"lora_unet_x.lora_down.weight": tensors[first]}, r"diffusers makes no StableDiffusion.*: Failed to load"),
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
        ({"path": folder.path}, r"model\.config=.*: must be null"),
    ):
        chosen = dataclasses.replace(file, **changes)  # type: ignore[arg-type]
        with pytest.raises(StartError, match=message):
            family_of(chosen).check(chosen)


def test_other_families_have_no_single_files(tmp_path: Path) -> None:
    narrow_flux().save_pretrained(tmp_path / "flux")
    save_file({"x": torch.zeros(1)}, tmp_path / "flux.safetensors")
    model = ModelConfig(family="flux", path=str(tmp_path / "flux.safetensors"), config=str(tmp_path / "flux"))
    with pytest.raises(StartError, match=r"is a file, must be a folder in diffusers format: of FLUX\.1-dev"):
        family_of(model).check(model)
