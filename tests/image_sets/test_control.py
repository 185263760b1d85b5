"""ControlNets of the teacher, on the teacher, its students and cascades: the pictures of diffusers' own pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from deep_pipeline import deep_pipeline
from diffusers import ControlNetModel, DDIMScheduler, LCMScheduler, StableDiffusionControlNetPipeline
from PIL import Image

from prdp.cli import main
from prdp.diffusion.noise import ImageNoise
from prdp.evaluation.store import read_image

CAPTION = "a small solid red circle"
OF_TEACHER = ("sampler.eta=0", "sampler.guidance_scale=2", "sampler.steps=2", "sampler.deterministic_final_steps=0")
OF_STUDENT = ("sampler=consistency", "sampler.steps=2", "sampler.original_inference_steps=4")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """(model, ControlNet, pictures); the ControlNet's last layers, which start as zeros, have learned something."""
    place = tmp_path_factory.mktemp("control")
    pipeline = deep_pipeline()
    pipeline.save_pretrained(place / "model")
    torch.manual_seed(1)
    network = ControlNetModel.from_unet(pipeline.unet, conditioning_channels=3)
    with torch.no_grad():
        for one in (*network.controlnet_down_blocks, network.controlnet_mid_block, network.controlnet_cond_embedding):
            for value in one.parameters():
                value.add_(0.3 * torch.randn_like(value))
    network.save_pretrained(place / "canny")
    (place / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for name in "ab":
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(place / "pictures" / f"{name}.png")
        (place / "pictures" / f"{name}.txt").write_text(CAPTION)
    return place / "model", place / "canny", place / "pictures"


def drawn(parts: tuple[Path, Path, Path], out: Path, *words: str) -> np.ndarray:
    model, control, pictures = parts
    given = [f"model.path={model}", f"pictures={pictures}", f"control={control}", "control_scale=0.8", "seed=3"]
    assert main(["generate", *given, "model.device=cpu", *words, f"output_dir={out}"]) == 0
    return np.stack([read_image(file) for file in sorted(out.rglob("*.png"))]).astype(int)


def theirs(parts: tuple[Path, Path, Path], scheduler: Any, guidance: float, scale: float = 0.8) -> np.ndarray:
    model, control, pictures = parts
    network = ControlNetModel.from_pretrained(control)
    pipeline = StableDiffusionControlNetPipeline.from_pretrained(model, controlnet=network, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    own = {} if scheduler is DDIMScheduler else {"original_inference_steps": 4}
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing", **own)
    noise = ImageNoise(3, 0, np.array([0]), np.array([0]), (4, 8, 8))
    first = torch.from_numpy(noise.draw())
    draw = "diffusers.schedulers.scheduling_lcm.randn_tensor"
    with patch(draw, lambda *args, **kwargs: torch.from_numpy(noise.draw())), Image.open(pictures / "a.png") as seen:
        made = pipeline(
            CAPTION, image=seen.convert("RGB"), latents=first, num_inference_steps=2, guidance_scale=guidance,
            controlnet_conditioning_scale=scale, output_type="np",
        ).images  # fmt: skip
    return (made[0] * 255).round().astype(int)


def test_teacher_and_student_draw_as_diffusers_does(parts: tuple[Path, Path, Path], tmp_path: Path) -> None:
    teacher = drawn(parts, tmp_path / "teacher", "models=[base]", *OF_TEACHER)
    expected = theirs(parts, DDIMScheduler, 2.0)
    assert np.abs(teacher[0] - expected).max() <= 1 < np.abs(teacher[1] - expected).max()
    assert np.abs(theirs(parts, DDIMScheduler, 2.0, 0.0) - expected).max() > 1, "the ControlNet does something"
    student = drawn(parts, tmp_path / "student", "models=[base]", *OF_STUDENT)
    assert np.abs(student[0] - theirs(parts, LCMScheduler, 1.0)).max() <= 1


def test_both_parts_of_a_cascade_draw_by_it(parts: tuple[Path, Path, Path], tmp_path: Path) -> None:
    words = ["models=[student:base,teacher:base]", "prompts=[shapes.train]", "prompts.shapes_train.size=9", *OF_TEACHER]
    words += ["prompts_per_set=4", "rewards=[redness]", "samplers.student.steps=1", "rate=1", "strategy=skip"]
    words += ["samplers.student.guidance_scale=1", f"model.path={parts[0]}", f"output_dir={tmp_path}/cascade"]
    assert main(["calibrate", *words]) == 0
    alone = drawn(parts, tmp_path / "teacher", "models=[base]", *OF_TEACHER)
    np.testing.assert_array_equal(drawn(parts, tmp_path / "both", f"models=[{tmp_path}/cascade]"), alone)
    assert main(["calibrate", *words, "strategy=refine"]) == 0
    refined = drawn(parts, tmp_path / "refined", f"models=[{tmp_path}/cascade]")
    [record] = (tmp_path / "refined").rglob("chunk.json")
    assert json.loads(record.read_text())["network_passes"] == [5.0, 5.0]
    assert np.abs(refined - alone).max() > 1


def test_what_is_no_controlnet_of_the_model_is_named(
    parts: tuple[Path, Path, Path], small_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, control, pictures = parts

    def refused(*words: str, path: Path = model) -> str:
        given = [f"model.path={path}", "models=[base]", *words, f"output_dir={tmp_path}/set"]
        assert main(["generate", *given]) == 2
        return capsys.readouterr().err

    assert "needs pictures" in refused(f"control={control}", "prompts=[shapes]")
    assert "must not be given beside strength=0.5" in refused(
        f"control={control}", f"pictures={pictures}", "strength=0.5"
    )
    told = refused(f"control={control}", f"pictures={pictures}", path=small_pipeline)
    assert "is of another UNet than the model's: block_out_channels is [8, 8, 8, 8] there and [8, 16] here" in told
    assert "is a UNet2DConditionModel; expected a ControlNetModel" in refused(
        f"control={model}/unet", f"pictures={pictures}"
    )
    assert "expected the folder of a ControlNet" in refused(f"control={pictures}", f"pictures={pictures}")
