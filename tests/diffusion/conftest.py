"""A small pipeline, and adapters of its UNet as diffusers and peft write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from lora_exports import ATTENTION, exported
from peft import LoraConfig, get_peft_model

from prdp.config import ModelConfig


@pytest.fixture(scope="session")
def folder(small_pipeline: Path) -> Path:
    return small_pipeline


@pytest.fixture(scope="session")
def style(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("style")
    return exported(ModelConfig(path=str(folder)), path, lora_rank=4, lora_alpha=6.0, lora_targets=ATTENTION)


@pytest.fixture(scope="session")
def peft_model(folder: Path) -> Any:
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    torch.manual_seed(3)
    settings = LoraConfig(
        r=2, lora_alpha=7, target_modules=["to_q", "proj_in", "conv2"], init_lora_weights=False,
        rank_pattern={"conv2": 3}, alpha_pattern={"proj_in": 1}, use_rslora=True,
    )  # fmt: skip
    return get_peft_model(unet, settings)


@pytest.fixture(scope="session")
def peft_folder(peft_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("peft")
    peft_model.save_pretrained(path)
    return path
