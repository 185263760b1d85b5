"""Image to image: the pictures of diffusers' own pipeline, and what students and cascades make of given ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from deep_pipeline import deep_pipeline
from diffusers import DDIMScheduler, LCMScheduler, StableDiffusionImg2ImgPipeline
from PIL import Image
from set_folders import contents

from prdp.cli import main
from prdp.diffusion.noise import ImageNoise
from prdp.evaluation.store import read_image
from prdp.support.storage import load_tensors

CAPTION = "a small solid red circle"
FEW = ("sampler.microbatch=2", "sampler.prompts_per_chunk=2", "model.device=cpu")
OF_TEACHER = ("sampler.eta=0", "sampler.guidance_scale=2", "sampler.steps=4", "sampler.deterministic_final_steps=0")


@pytest.fixture(scope="module")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd15")
    deep_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name in "abc":
        levels = np.kron(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8), np.ones((16, 16, 1), np.uint8))
        Image.fromarray(levels).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(CAPTION)
    return folder


def edited(model: Path, pictures: Path, out: Path, *words: str) -> Path:
    given = [f"model.path={model}", f"pictures={pictures}", *FEW, *words, f"output_dir={out}"]
    assert main(["generate", *given]) == 0
    return out


def images(folder: Path) -> np.ndarray:
    return np.stack([read_image(file) for file in sorted(folder.rglob("*.png"))])


def theirs(model: Path, picture: Path, scheduler: Any, guidance: float, skipped: int) -> np.ndarray:
    """Of plain diffusers, eight steps at strength .5, with the sampler's noise and the mean of the VAE's posterior."""
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(model, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    if scheduler is LCMScheduler:
        pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config, original_inference_steps=8)
    shape = (4, *(int(pipeline.unet.config.sample_size),) * 2)
    noise = ImageNoise(3, 0, np.array([0]), np.array([0]), shape)
    draws = [noise.draw() for _ in range(9)]
    start, within = draws[0], iter(draws[1 + skipped :])
    side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    with Image.open(picture) as opened:
        given = opened.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
    vae = "diffusers.models.autoencoders.vae"
    here = "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img.randn_tensor"
    with (
        patch(here, lambda *args, **kwargs: torch.from_numpy(start)),
        patch("diffusers.schedulers.scheduling_lcm.randn_tensor", lambda *a, **k: torch.from_numpy(next(within))),
        patch(f"{vae}.DiagonalGaussianDistribution.sample", lambda posterior, generator=None: posterior.mean),
    ):
        made = pipeline(
            CAPTION, image=given, strength=0.5, num_inference_steps=8, guidance_scale=guidance, output_type="np"
        ).images
    return (made[0] * 255).round().astype(int)


@pytest.mark.parametrize("layout", ["embedded", "sd15"])
def test_a_teacher_draws_from_pictures_what_diffusers_draws(
    layout: str, pipeline_folder: Path, sd15: Path, pictures: Path, tmp_path: Path
) -> None:
    """Four steps here are the second half of diffusers' eight at strength .5."""
    model = pipeline_folder if layout == "embedded" else sd15
    words = ("models=[base]", "strength=0.5", "seed=3", *OF_TEACHER)
    made = images(edited(model, pictures, tmp_path / "set", *words))
    expected = theirs(model, pictures / "a.png", DDIMScheduler, 2.0, 0)
    assert np.abs(made[0].astype(int) - expected).max() <= 1
    assert np.abs(made[1].astype(int) - expected).max() > 1


@pytest.mark.parametrize("layout", ["embedded", "sd15"])
def test_a_student_draws_from_pictures_what_diffusers_draws(
    layout: str, pipeline_folder: Path, sd15: Path, pictures: Path, tmp_path: Path
) -> None:
    model = pipeline_folder if layout == "embedded" else sd15
    words = ("models=[base]", "strength=0.5", "seed=3", "sampler=consistency", "sampler.steps=4")
    made = images(edited(model, pictures, tmp_path / "set", *words, "sampler.original_inference_steps=8"))
    expected = theirs(model, pictures / "a.png", LCMScheduler, 1.0, 4)
    assert np.abs(made[0].astype(int) - expected).max() <= 1


def test_cascades_edit_as_their_parts_do(
    small_pipeline: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ("samplers.student.steps=1", "samplers.student.guidance_scale=1")
    parts = ("models=[student:base,teacher:base]", "prompts=[shapes.train]", "prompts.shapes_train.size=9")
    words = (*parts, "prompts_per_set=4", "rewards=[redness]", "samplers.student.deterministic_final_steps=0")
    base = ("models=[base]", "strength=0.5", "images_per_prompt=2", "sampler.eta=0", "seed=3")
    alone = {
        "student": images(edited(small_pipeline, pictures, tmp_path / "a", *base, "sampler.guidance_scale=1",
                                 "sampler.steps=1", "sampler.deterministic_final_steps=0")),
        "teacher": images(edited(small_pipeline, pictures, tmp_path / "b", *base, *OF_TEACHER)),
    }  # fmt: skip
    assert "base draws from t = 499 on, step 1 of 2: strength 0.50" in capsys.readouterr().out
    cascade = tmp_path / "cascade"
    for strategy, rate, same in (("skip", 1, "teacher"), ("regenerate", 1, ""), ("refine", 0, "student")):
        asked = [f"model.path={small_pipeline}", *words, *few, *OF_TEACHER, f"strategy={strategy}", f"rate={rate}"]
        assert main(["calibrate", *asked, f"output_dir={cascade}"]) == 0
        own = (f"models=[{cascade}]", "strength=0.5", "images_per_prompt=2", "seed=3")
        made = images(edited(small_pipeline, pictures, tmp_path / f"{strategy}{rate}_set", *own))
        if same:
            np.testing.assert_array_equal(made, alone[same])
        else:
            assert (made != alone["student"]).any() and (made != alone["teacher"]).any()
    passes = {
        name: {
            one
            for file in (tmp_path / f"{name}_set").rglob("chunk.json")
            for one in json.loads(file.read_text())["network_passes"]
        }
        for name in ("skip1", "regenerate1", "refine0")
    }
    assert passes == {"skip1": {8}, "regenerate1": {9}, "refine0": {1}}
    assert "was calibrated on images that were drawn from noise" in capsys.readouterr().out


def test_an_edited_set_goes_on_and_says_what_it_is(
    small_pipeline: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("models=[base]", "strength=0.3", "sampler.steps=1", "sampler.deterministic_final_steps=0")
    folder = edited(small_pipeline, pictures, tmp_path / "set", *words)
    before = contents(folder)
    [late] = [file for file in (folder / "samples").rglob("chunk.json") if "00002" in str(file)]
    assert load_tensors(late.parent / "latents.safetensors")["final_latents"].shape == (1, 4, 8, 8)
    shutil.rmtree(late.parent)
    assert contents(edited(small_pipeline, pictures, folder, *words)) == before
    given = [f"model.path={small_pipeline}", f"pictures={pictures}", *FEW, f"output_dir={folder}"]

    def refused(*more: str) -> str:
        assert main(["generate", *given, *more]) == 2
        return capsys.readouterr().err

    assert "strength" in refused("models=[base]", "strength=0.4", *words[2:])
    assert "strength=0.4: needs models" in refused("strength=0.4")
    assert "models: must not be given beside pictures" in refused("models=[base]")
    assert "strength=1.5: must be" in refused("models=[base]", "strength=1.5")
    long = ("models=[base]", "strength=0.1", "sampler=consistency", "sampler.original_inference_steps=8")
    assert "steps" in refused(*long, "sampler.steps=4")
    assert main(["generate", "models=[base]", "strength=0.4", "prompts=[shapes]", f"output_dir={tmp_path}/x"]) == 2
    assert "strength=0.4: needs pictures" in capsys.readouterr().err
