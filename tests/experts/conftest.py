"""Random LoRA experts of a small UNet, in files of diffusers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from expert_files import write_expert

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
Network = Callable[[], UNet2DConditionModel]


@pytest.fixture(scope="session")
def unet(small_pipeline: Path) -> Network:
    """Makes a small UNet, without adapters."""
    return lambda: UNet2DConditionModel.from_pretrained(small_pipeline / "unet")


@pytest.fixture(scope="session")
def experts(small_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three files that differ in rank, alpha and layers, convolutions among them."""
    settings: list[dict[str, Any]] = [
        {"r": 4, "lora_alpha": 6, "target_modules": ATTENTION},
        {"r": 6, "lora_alpha": 3, "target_modules": [*ATTENTION, "conv1"]},
        {
            "r": 3, "lora_alpha": 5, "target_modules": ["to_q", "to_v", "ff.net.2", "conv1"],
            "rank_pattern": {"ff.net.2": 5}, "alpha_pattern": {"to_v": 2}, "use_rslora": True,
        },
    ]  # fmt: skip
    return [
        write_expert(tmp_path_factory.mktemp(f"expert{number}"), small_pipeline, number, **one)
        for number, one in enumerate(settings)
    ]


@pytest.fixture(scope="session")
def output() -> Callable[[Any], torch.Tensor]:
    """What a UNet gives for fixed noise."""

    @torch.no_grad()
    def of(network: Any) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        config = network.config
        size = (2, config.in_channels, config.sample_size, config.sample_size)
        latents = torch.randn(size, generator=generator)
        states = torch.randn(2, 5, config.cross_attention_dim, generator=generator)
        result: torch.Tensor = network(latents, torch.tensor([900, 30]), states, return_dict=False)[0]
        return result

    return of
