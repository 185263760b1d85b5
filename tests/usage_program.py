"""The program that is written beside exported weights, run as it stands."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from prdp.diffusion.flux import packed
from prdp.diffusion.noise import ImageNoise
from prdp.diffusion.usage import USAGE_FILE

_FAMILIES = ("stable_diffusion", "stable_diffusion_xl", "stable_diffusion_3", "flux", "z_image")
_DRAWING = (
    *(f"pipelines.{name}.pipeline_{name}" for name in _FAMILIES),
    *(f"schedulers.scheduling_{name}" for name in ("ddim", "ddpm", "lcm")),
)


def program(text: str) -> str:
    found = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert found is not None
    return found[1]


def run_program(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch, noise: ImageNoise) -> np.ndarray:
    """The picture of the program as it stands, with the noise of a sampler in place of diffusers' own and torch's."""

    def drawn(*shape: Any, **_: Any) -> torch.Tensor:
        latents = torch.from_numpy(noise.draw())
        return packed(latents) if len(shape[0]) == 3 else latents

    names: dict[str, Any] = {}
    with monkeypatch.context() as patches:
        patches.chdir(folder)
        for module in _DRAWING:
            patches.setattr(importlib.import_module(f"diffusers.{module}"), "randn_tensor", drawn)
        if "torch.randn(" in program(text):
            patches.setattr(torch, "randn", drawn)
        exec(compile(program(text), USAGE_FILE, "exec"), names)
    assert isinstance(names["pipeline"], DiffusionPipeline)
    return np.asarray(Image.open(folder / "picture.png"))
