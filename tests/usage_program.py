"""The program that is written beside exported weights, run as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image

from prdp.diffusion.noise import ImageNoise
from prdp.diffusion.usage import USAGE_FILE


def program(text: str) -> str:
    found = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert found is not None
    return found[1]


def run_program(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch, noise: ImageNoise) -> np.ndarray:
    """The picture of the program as it stands, with the noise of a sampler in place of diffusers' own."""
    monkeypatch.chdir(folder)
    pipelines = [f"pipelines.{name}.pipeline_{name}" for name in ("stable_diffusion", "stable_diffusion_xl")]
    for module in (*pipelines, *(f"schedulers.scheduling_{one}" for one in ("ddim", "ddpm", "lcm"))):
        monkeypatch.setattr(f"diffusers.{module}.randn_tensor", lambda *args, **kwargs: torch.from_numpy(noise.draw()))
    names: dict[str, Any] = {}
    exec(compile(program(text), USAGE_FILE, "exec"), names)
    assert isinstance(names["pipeline"], StableDiffusionPipeline | StableDiffusionXLPipeline)
    return np.asarray(Image.open(folder / "picture.png"))
