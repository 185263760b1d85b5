"""ControlNets: a copy of a UNet's first half that reads a picture, and adds to the UNet's states (arXiv:2302.05543).

One that was trained on the teacher goes with its students, as their UNets have the same states.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prdp.support.errors import StartError
from prdp.support.json_lines import load_json
from prdp.types import UInt8

FIELD = "control"
"""Of `Conditions`: the pictures, float32 [B, 3, H, W] in [0, 1]; both branches of guidance are given them."""
_ALIKE = (
    "block_out_channels",
    "layers_per_block",
    "cross_attention_dim",
    "in_channels",
    "attention_head_dim",
    "down_block_types",
)
"""Settings that a ControlNet and its UNet share."""


class Control:
    """A ControlNet beside a UNet.

    Args:
        network: of diffusers.
        scale: that what it adds is multiplied by.
    """

    def __init__(self, network: Any, scale: float) -> None:
        self.network, self._scale = network.eval().requires_grad_(False), scale

    def residuals(
        self, latents: torch.Tensor, times: torch.Tensor, states: torch.Tensor, pictures: torch.Tensor
    ) -> dict[str, Any]:
        """Arguments of the UNet that add to its states.

        Args:
            latents: [B, C, h, w]; times: int64 [B]; states: of prompts [B, tokens, width].
            pictures: float32 [B, 3, H, W] in [0, 1].
        """
        down, middle = self.network(
            latents,
            times,
            encoder_hidden_states=states,
            controlnet_cond=pictures.to(states.dtype),
            conditioning_scale=self._scale,
            return_dict=False,
        )
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}


def load_control(path: str, scale: float, like: torch.nn.Module) -> Control:
    """The ControlNet in a folder, in a network's precision and on its device.

    Raises:
        StartError: see `check_control`; weights that are not whole.
    """
    from diffusers import ControlNetModel

    try:
        network: Any = ControlNetModel.from_pretrained(Path(path).expanduser(), local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise StartError(f"control={path}: holds no whole ControlNet: {error}") from error
    parameter = next(like.parameters())
    return Control(network.to(parameter.device, parameter.dtype), scale)


def check_control(path: str, network: Mapping[str, Any]) -> None:
    """Refuse a folder that holds no ControlNet of a UNet, before weights are read.

    Args:
        network: configuration of the UNet.

    Raises:
        StartError: names what is missing, or the settings that differ.
    """
    folder = Path(path).expanduser()
    try:
        config = load_json((folder / "config.json").read_text(encoding="utf-8"))
        kind = config.get("_class_name")
    except (OSError, ValueError, AttributeError) as error:
        raise StartError(f"control={path}: expected the folder of a ControlNet of diffusers: {error}") from error
    if kind != "ControlNetModel":
        raise StartError(f"control={path}: is a {kind}; expected a ControlNetModel")
    differ = [
        f"{key} is {config.get(key)} there and {network.get(key)} here"
        for key in _ALIKE
        if config.get(key) is not None and _plain(config[key]) != _plain(network.get(key))
    ]
    if differ:
        raise StartError(f"control={path}: is of another UNet than the model's: {'; '.join(differ)}")
    if not list(folder.glob("*.safetensors")):
        raise StartError(f"control={path}: holds no weights in a .safetensors file")


def control_digest(path: str) -> str:
    """Changes with the weights and the configuration of a ControlNet."""
    digest = hashlib.blake2b(digest_size=12)
    for file in sorted(Path(path).expanduser().iterdir()):
        if file.suffix in (".safetensors", ".json"):
            digest.update(file.name.encode())
            digest.update(hashlib.blake2b(file.read_bytes(), digest_size=12).digest())
    return digest.hexdigest()


def as_control(pictures: UInt8) -> torch.Tensor:
    """Pictures uint8 [n, H, W, 3] as `FIELD`."""
    return torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))).float() / 255.0


def _plain(value: Any) -> Any:
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
