"""The program that is written beside exported weights makes, in plain diffusers, the pictures of the run's sampler."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from usage_program import program, run_program

from prdp.config import LearnerConfig, ModelConfig, SamplerConfig
from prdp.diffusion import build_policy, family_of
from prdp.diffusion.noise import ImageNoise
from prdp.diffusion.sampler import Sampler
from prdp.diffusion.usage import USAGE_FILE, usage_text
from prdp.types import PromptBatch, Weights

PROMPT = """a "small" red circle, it's \\ {here}"""
SEED = 5
SAMPLER = SamplerConfig(steps=4, guidance_scale=2.0)


@pytest.mark.parametrize(
    ("mode", "changes", "size"),
    [
        ("lora", {}, {}),
        ("lora", {"eta": 0.3, "deterministic_final_steps": 2, "timestep_spacing": "trailing"}, {}),
        ("lora", {"kind": "ddpm", "timestep_spacing": "linspace", "guidance_scale": 0.5}, {}),
        ("full", {"deterministic_final_steps": 1, "negative_prompt": "a 'large' star"}, {}),
        ("full", {"eta": 0.0}, {"height": 24, "width": 40}),
        ("lora", {"window": "fixed", "deterministic_final_steps": 1, "timestep_spacing": "trailing"}, {}),
        ("lora", {"window": "random", "kind": "ddpm", "deterministic_final_steps": 1}, {}),
        ("full", {"kind": "consistency", "original_inference_steps": 8}, {}),
    ],
    ids=[
        "ddim", "last_steps_without_noise", "ddpm", "full", "not_square_without_noise", "window", "window_of_ddpm",
        "consistency",
    ],
)
def test_the_program_makes_the_pictures_of_the_sampler(
    pipeline_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    changes: dict[str, Any],
    size: dict[str, int],
) -> None:
    model, settings = ModelConfig(path=str(pipeline_folder), **size), dataclasses.replace(SAMPLER, **changes)
    learner = LearnerConfig(mode=mode, lora_rank=4, lora_alpha=6.0, lora_targets=["to_q", "proj_in"])
    policy: Any = build_policy(model, learner, seed=0, keep_reference=False)
    rng = np.random.default_rng(0)
    start = policy.weights.export(0).tensors
    policy.weights.bind(
        Weights.of(1, {k: (v + 0.05 * rng.normal(size=v.shape)).astype(np.float32) for k, v in start.items()})
    )
    policy.save(tmp_path / "weights")
    windowed = settings.window != "all"
    quiet = dataclasses.replace(settings, kind="ddim", eta=0.0, deterministic_final_steps=0, window="all")
    sampler = Sampler(policy, quiet if windowed else settings)
    expected = sampler.sample(PromptBatch(0, 0, (PROMPT,), ({},)), 1, SEED, trajectory=False).images[0]

    text = policy.usage(model, settings, mode, tmp_path / "weights", PROMPT)
    noise = ImageNoise(SEED, 0, np.array([0]), np.array([0]), policy.latent_shape)
    picture = run_program(text, tmp_path, monkeypatch, noise)
    assert picture.shape == expected.shape == (size.get("height", 32), size.get("width", 32), 3)
    assert np.abs(picture.astype(int) - expected).max() <= 1
    assert ("no guidance" in text) == (settings.guidance_scale <= 1)
    assert ("in a window of steps alone; the program draws none" in text) == windowed
    assert "t - num_train_timesteps // steps" not in text


def test_the_program_runs_in_any_folder_and_without_parts_that_are_not_there(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders are shared without what filters or reads pictures, and name it all the same."""
    index = json.loads((model_folder / "model_index.json").read_text())
    for part, kind in (("image_encoder", "CLIPVisionModelWithProjection"), ("feature_extractor", "CLIPImageProcessor")):
        index[part] = ["transformers", kind]
    (model_folder / "model_index.json").write_text(json.dumps(index))
    monkeypatch.chdir(model_folder.parent)
    model = ModelConfig(path=model_folder.name)
    family_of(model).check(model)
    policy: Any = build_policy(model, LearnerConfig(lora_rank=2), seed=0, keep_reference=False)
    policy.save(tmp_path / "weights")
    text = policy.usage(model, SAMPLER, "lora", tmp_path / "weights", PROMPT)
    noise = ImageNoise(SEED, 0, np.array([0]), np.array([0]), policy.latent_shape)
    (tmp_path / "elsewhere").mkdir()
    assert run_program(text, tmp_path / "elsewhere", monkeypatch, noise).ndim == 3


def test_the_embedded_pipeline_is_named_by_its_function() -> None:
    scheduler = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 2e-2, "beta_schedule": "linear"}
    text = usage_text(ModelConfig(dtype="bfloat16"), SAMPLER, scheduler, (32, 32), "lora", Path("weights"), "x")
    assert "from_pretrained(pipeline_folder(), safety_checker=None, dtype=torch.bfloat16)" in text
    compile(program(text), USAGE_FILE, "exec")


@pytest.mark.parametrize(
    ("spacing", "steps", "kind", "told"),
    [
        ("leading", 7, "ddim", False),
        ("trailing", 8, "ddim", False),
        ("trailing", 7, "ddim", True),
        ("linspace", 8, "ddim", True),
        ("linspace", 8, "ddpm", False),
    ],
)
def test_where_diffusers_steps_elsewhere_it_is_told(spacing: str, steps: int, kind: str, told: bool) -> None:
    settings = SamplerConfig(kind=kind, steps=steps, timestep_spacing=spacing)
    text = usage_text(ModelConfig(), settings, {"num_train_timesteps": 1000}, (32, 32), "lora", Path("weights"), "x")
    assert ("t - num_train_timesteps // steps" in text) == told
