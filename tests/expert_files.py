"""LoRA experts with random factors, in files of diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from prdp.diffusion.adapter_tensors import LORA_FILE


def write_expert(folder: Path, pipeline: Path, seed: int, **settings: Any) -> Path:
    """An expert of the UNet in a pipeline's folder; its file.

    Args:
        settings: of peft's LoraConfig.
    """
    network = UNet2DConditionModel.from_pretrained(pipeline / "unet")
    torch.manual_seed(seed)
    network.add_adapter(LoraConfig(**({"r": 2, "lora_alpha": 3, "init_lora_weights": False} | settings)))
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=get_peft_model_state_dict(network),
        unet_lora_adapter_metadata=network.peft_config["default"].to_dict(),
        weight_name=LORA_FILE,
    )
    return folder / LORA_FILE
