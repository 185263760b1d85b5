"""LoRA weights as a file of diffusers: written so that every matrix binds, and read back to prove it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

LORA_FILE = "pytorch_lora_weights.safetensors"
_ADAPTER = "exported"
"""Names the adapter that is read back."""


def save_lora(unet: Any, folder: Path) -> None:
    """Write the adapters of a UNet as `LORA_FILE`, for `StableDiffusionPipeline.load_lora_weights`.

    Matrices keep peft's names (lora_A, lora_B): diffusers takes the scheme of the first name for that of all, and its
    own conversion renames those of attention alone.

    Raises:
        ValueError: what diffusers makes of the file is not what was learned; see `check_lora`.
    """
    from diffusers import StableDiffusionPipeline
    from peft.utils import get_peft_model_state_dict

    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=get_peft_model_state_dict(unet),
        unet_lora_adapter_metadata=unet.peft_config["default"].to_dict(),
        weight_name=LORA_FILE,
        safe_serialization=True,
    )
    check_lora(unet, folder / LORA_FILE)


def check_lora(unet: Any, file: Path) -> None:
    """Load a LoRA file by diffusers into a UNet of zeros, and compare it with the adapters of `unet`.

    Raises:
        ValueError: names a matrix that diffusers binds to no layer, or with another value or scale.
    """
    from diffusers import StableDiffusionPipeline

    empty = _of_zeros(unet)
    state, alphas, metadata = StableDiffusionPipeline.lora_state_dict(
        file.parent, weight_name=file.name, return_lora_metadata=True
    )
    with warnings.catch_warnings():
        # peft warns of layers without matrices; they are counted below.
        warnings.simplefilter("ignore", RuntimeWarning)
        StableDiffusionPipeline.load_lora_into_unet(
            state, alphas, empty, adapter_name=_ADAPTER, metadata=metadata, low_cpu_mem_usage=True
        )
    bound, learned = _matrices(empty, _ADAPTER), _matrices(unet, "default")
    lost = [name for name in learned if name not in bound or bound[name][0].device.type == "meta"]
    changed = [
        name
        for name in learned.keys() - lost
        if bound[name][1] != learned[name][1] or not torch.equal(bound[name][0], learned[name][0].to("cpu"))
    ]
    if lost or changed or bound.keys() - learned.keys():
        first = sorted(lost or changed or bound.keys() - learned.keys())[0]
        raise ValueError(
            f"{file}: of the {len(learned)} LoRA matrices that were learned diffusers binds "
            f"{len(learned) - len(lost)}, {len(changed)} of them with another value or scale, and "
            f"{len(bound.keys() - learned.keys())} that were not learned; first: {first}"
        )


def _of_zeros(unet: Any) -> Any:
    """A network of the same layers whose weights are one zero each, seen in all places: they need no memory."""
    with torch.device("meta"):
        network = type(unet).from_config(unet.config)
    for module in network.modules():
        for name, value in module.named_parameters(recurse=False):
            setattr(module, name, torch.nn.Parameter(torch.zeros(()).expand(value.shape), requires_grad=False))
    return network


def _matrices(unet: Any, adapter: str) -> dict[str, tuple[torch.Tensor, float]]:
    """Name without the adapter's -> matrix and the scale of its layer, alpha / rank."""
    found = {}
    for name, module in unet.named_modules():
        for part in ("lora_A", "lora_B"):
            if adapter in getattr(module, part, {}):
                found[f"{name}.{part}"] = getattr(module, part)[adapter].weight.detach(), module.scaling[adapter]
    return found
