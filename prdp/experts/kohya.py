"""Names of kohya's trainers, to and from diffusers': diffusers' own converters say what they mean.

Kohya writes dots as underscores, so that only a list of what may stand in a name can undo it. For UNets and their
text encoders diffusers converts name by name, and each tensor can be followed. For transformers it converts whole
files, fuses and splits factors and takes their scales into them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from prdp.experts.names import diffusers_name
from prdp.support.errors import ConfigError, StartError

if TYPE_CHECKING:
    import torch

KOHYA_PREFIXES = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_", "lora_te3_", "lora_transformer_")
FOREIGN_PREFIXES = ("diffusion_model.", "double_blocks.", "single_blocks.")
"""Beginnings of others' names for transformers, which diffusers converts likewise."""
_UNET = (
    "down_blocks", "mid_block", "up_blocks", "input_blocks", "middle_block", "output_blocks", "time_embed", "label_emb",
)  # fmt: skip
_FLUX = ("double_blocks", "single_blocks")
_Z_IMAGE = (
    "unet_layers_", "noise_refiner", "context_refiner", "diffusion_model.layers.", "all_final_layer", "cap_embedder",
)  # fmt: skip
_SD3 = ("joint_blocks",)
_BLOCKS = SimpleNamespace(layers_per_block=2)
"""What diffusers asks of a UNet's configuration to number the blocks of Stability AI's names; 2 in all released."""
_UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, RuntimeError, AssertionError)
"""What diffusers raises for names and shapes that it makes nothing of."""


def from_kohya(
    where: str, raw: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors under diffusers' names, alphas as `<layer>.alpha`, and those names -> the names in the file.

    Raises:
        StartError: a name that diffusers cannot convert; names it.
    """
    family = _family(raw)
    if family is None:
        raise StartError(
            f"{where}: {next(iter(raw))}: are names of kohya's trainers that diffusers has no converter for; it has "
            "those of the UNets of Stable Diffusion, of FLUX and of Z-Image. Give the file in the format of diffusers"
        )
    if family != "unet":
        return _converted_whole(where, raw, family), {}
    state: dict[str, torch.Tensor] = {}
    origins: dict[str, str] = {}
    for name, value in raw.items():
        module, _, part = name.partition(".")
        if part not in ("lora_down.weight", "lora_up.weight", "alpha") or not name.startswith(KOHYA_PREFIXES):
            raise StartError(f"{where}: {name}: is no tensor of a LoRA of kohya's trainers")
        layer = _layer(where, module)
        new = f"{layer}.alpha" if part == "alpha" else f"{layer}.lora_{'A' if 'down' in part else 'B'}.weight"
        if new in state:
            raise StartError(f"{where}: {name} and {origins[new]} are both of layer {layer}")
        state[new], origins[new] = value, name
    return state, origins


def kohya_names(layers: Sequence[str]) -> dict[str, str]:
    """Layer -> kohya's name of it, from which diffusers finds the layer again.

    Raises:
        ConfigError: format=kohya has no name for a layer; names it.
    """
    found = {}
    for layer in layers:
        component, _, path = layer.partition(".")
        prefix = {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}.get(component, "lora_unet_")
        if prefix == "lora_te1_" and not any(one.startswith("text_encoder_2.") for one in layers):
            prefix = "lora_te_"
        name = prefix + path.replace(".", "_")
        if _found_again(name) != layer:
            raise ConfigError(
                f"format=kohya: layer {layer} has no name of kohya's that diffusers reads back; UNets of Stable "
                "Diffusion, their text encoders and Z-Image have. Take format=diffusers, which ComfyUI and others read"
            )
        found[layer] = name
    return found


def _family(names: Mapping[str, Any] | Sequence[str]) -> str | None:
    """Whose names these are: 'unet', 'flux' or 'z_image'."""
    marks = (("unet", _UNET), ("flux", _FLUX), ("z_image", _Z_IMAGE), (None, _SD3))
    for family, marks_of in marks:
        if any(mark in name for name in names for mark in marks_of if not name.startswith("lora_te")):
            return family
    return "unet" if all(name.startswith("lora_te") or "lora_unet_conv_" in name for name in names) else None


def _layer(where: str, module: str) -> str:
    """Diffusers' name of the layer that a UNet's or text encoder's module of kohya is."""
    import torch
    from diffusers.loaders import StableDiffusionXLLoraLoaderMixin

    one = torch.zeros(1)
    state = {f"{module}.lora_{part}.weight": one for part in ("down", "up")}
    try:
        converted, _ = StableDiffusionXLLoraLoaderMixin.lora_state_dict(state, unet_config=_BLOCKS)
        layers = {diffusers_name(name).rpartition(".lora_")[0] for name in converted}
    except _UNREADABLE as error:
        raise StartError(f"{where}: {module}: diffusers makes no layer of this name: {error}") from error
    if len(layers) != 1:
        raise StartError(f"{where}: {module}: diffusers makes no layer of this name")
    return layers.pop()


def _converted_whole(where: str, raw: Mapping[str, torch.Tensor], family: str) -> dict[str, torch.Tensor]:
    from diffusers.loaders import FluxLoraLoaderMixin, ZImageLoraLoaderMixin

    loader: Any = FluxLoraLoaderMixin if family == "flux" else ZImageLoraLoaderMixin
    try:
        converted = loader.lora_state_dict(dict(raw))
    except _UNREADABLE as error:
        raise StartError(f"{where}: diffusers makes no LoRA of its tensors: {error}") from error
    return {diffusers_name(name): value for name, value in converted.items()}


def _found_again(module: str) -> str | None:
    """The layer that reading a name of kohya's leads to; None where it leads nowhere."""
    import torch

    try:
        if _family([module]) == "z_image":
            state = {f"{module}.lora_{part}.weight": torch.zeros(1, 1) for part in ("down", "up")}
            names = _converted_whole("", state, "z_image")
            return next(iter(names)).rpartition(".lora_")[0]
        return _layer("", module)
    except StartError:
        return None
