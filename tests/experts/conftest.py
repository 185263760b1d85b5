"""Random LoRA experts of a small UNet, in files of diffusers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from prdp.diffusion.adapter_files import LORA_FILE

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
Network = Callable[[], UNet2DConditionModel]
MakeExpert = Callable[..., Path]


@pytest.fixture(scope="session")
def unet(small_pipeline: Path) -> Network:
    """Makes a small UNet, without adapters."""
    return lambda: UNet2DConditionModel.from_pretrained(small_pipeline / "unet")


@pytest.fixture(scope="session")
def make_expert(unet: Network) -> MakeExpert:
    """Writes an expert with random factors into a folder; its file."""

    def make(folder: Path, seed: int, network: Any = None, **settings: Any) -> Path:
        network = network or unet()
        torch.manual_seed(seed)
        config = {"r": 4, "lora_alpha": 6, "target_modules": ATTENTION, "init_lora_weights": False} | settings
        network.add_adapter(LoraConfig(**config))
        StableDiffusionPipeline.save_lora_weights(
            folder,
            unet_lora_layers=get_peft_model_state_dict(network),
            unet_lora_adapter_metadata=network.peft_config["default"].to_dict(),
            weight_name=LORA_FILE,
        )
        return folder / LORA_FILE

    return make


@pytest.fixture(scope="session")
def experts(make_expert: MakeExpert, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three files that differ in rank, alpha and layers, convolutions among them."""
    return [
        make_expert(tmp_path_factory.mktemp("one"), 1),
        make_expert(tmp_path_factory.mktemp("two"), 2, r=6, lora_alpha=3, target_modules=[*ATTENTION, "conv1"]),
        make_expert(
            tmp_path_factory.mktemp("three"), 3, r=3, lora_alpha=5, rank_pattern={"ff.net.2": 5},
            target_modules=["to_q", "to_v", "ff.net.2", "conv1"], alpha_pattern={"to_v": 2}, use_rslora=True,
        ),
    ]  # fmt: skip


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
