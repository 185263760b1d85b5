"""Names of kohya's trainers, to and from diffusers': diffusers' own converters say what they mean.

Kohya writes dots as underscores, so that only a list of what may stand in a name can undo it. For UNets and their
text encoders diffusers converts name by name, and each tensor can be followed. For FLUX and Z-Image it converts whole
files, fuses and splits factors and takes their scales into them. Those of Stable Diffusion 3, and the authors' own
names with dots, `prdp/diffusion/fused_factors.py` reads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from prdp.diffusion.adapter_files import AdaptedLayer
from prdp.diffusion.fused_factors import (
    FLUX_WIDTH,
    authors_layout,
    check_flux_rows,
    joined_factors,
    split_factors,
)
from prdp.diffusion.original_layers import FLUX_LAYERS, STABLE_DIFFUSION_3_LAYERS, Layout
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
_TRANSFORMER = "transformer."
_SD3_WIDTHS = (1536, 2432)
"""Of the released ones, medium and large."""
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
    if authors_layout(raw) is not None:
        return _of_authors(where, raw)
    family = _family(raw)
    if family is None:
        raise StartError(
            f"{where}: {next(iter(raw))}: are names of kohya's trainers that diffusers has no converter for; it has "
            "those of the UNets of Stable Diffusion, of FLUX and of Z-Image. Give the file in the format of diffusers"
        )
    if family != "unet":
        return _converted_whole(where, raw, family), {}
    return _by_name(where, raw)


def _by_name(where: str, raw: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Of UNets and text encoders."""
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
                "Diffusion, their text encoders, Stable Diffusion 3, FLUX.1 and Z-Image have. Take format=diffusers, "
                "which ComfyUI and others read"
            )
        found[layer] = name
    return found


def kohya_layout(layers: Mapping[str, AdaptedLayer], family: str | None = None) -> Layout | None:
    """Of transformers in which queries, keys and values are one layer for kohya's trainers; None for other networks.

    Args:
        layers: name with its component -> factors.
        family: `model.family`, where it is known: names of some layers are those of two families.

    Raises:
        ConfigError: format=kohya has no name for a layer, or nothing tells which family it is of; names it.
    """
    inner = {
        name.removeprefix(_TRANSFORMER): one for name, one in layers.items() if name.startswith(_TRANSFORMER)
    }
    fused = {"stable_diffusion_3": STABLE_DIFFUSION_3_LAYERS, "flux": FLUX_LAYERS}
    named = [one for one in fused.values() if all(one.original(name) is not None for name in inner)]
    if family is not None:
        named = [fused[family]] if family in fused and inner else []
    if not inner or not named:
        return None
    width = next((one.down.shape[1] for name, one in inner.items() if re.search(r"to_|_proj$|\.linear$", name)), 0)
    if len(named) == 1:
        found = named[0]
    elif width == FLUX_WIDTH or width in _SD3_WIDTHS:
        found = FLUX_LAYERS if width == FLUX_WIDTH else STABLE_DIFFUSION_3_LAYERS
    else:
        raise ConfigError(
            f"format=kohya: layer {_TRANSFORMER}{next(iter(inner))}, {width} wide, and the others are named alike in "
            "Stable Diffusion 3 and in FLUX.1, and kohya has other names for each. Take format=diffusers"
        )
    for name in inner:
        # Of FLUX diffusers reads kohya's names of layers in blocks alone.
        if found.original(name) is None or (found is FLUX_LAYERS and name in found.ends.values()):
            raise ConfigError(
                f"format=kohya: layer {_TRANSFORMER}{name} has no name of kohya's that is read back. Take "
                "format=diffusers, which ComfyUI and others read"
            )
        if found is FLUX_LAYERS and ".attn.to_" in name and name.startswith("single") and width != FLUX_WIDTH:
            raise ConfigError(
                f"format=kohya: layer {_TRANSFORMER}{name} is {width} wide, and diffusers reads kohya's names of "
                f"FLUX.1 of {FLUX_WIDTH} alone. Take format=diffusers"
            )
    return found


def fused_tensors(layout: Layout, layers: Mapping[str, AdaptedLayer]) -> dict[str, torch.Tensor]:
    """Tensors of a transformer's layers, whose scale is 1, under kohya's names; alpha is the rank."""
    import torch

    tensors = {}
    factors = {name.removeprefix(_TRANSFORMER): (one.down, one.up) for name, one in layers.items()}
    for name, (down, up) in joined_factors(layout, factors).items():
        tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"] = down, up
        tensors[f"{name}.alpha"] = torch.tensor(float(down.shape[0]))
    return tensors


def _of_authors(where: str, raw: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    import torch

    state, origins = _by_name(where, {name: value for name, value in raw.items() if name.startswith("lora_te")})
    for layer, ((down, up), scale, origin) in split_factors(where, raw).items():
        name = f"{_TRANSFORMER}{layer}"
        parts = {"lora_A.weight": down, "lora_B.weight": up, "alpha": torch.tensor(scale * down.shape[0])}
        for part, value in parts.items():
            state[f"{name}.{part}"], origins[f"{name}.{part}"] = value, origin
    return state, origins


def _family(names: Mapping[str, Any] | Sequence[str]) -> str | None:
    """Whose names these are: 'unet', 'flux' or 'z_image'."""
    marks = (("unet", _UNET), ("flux", _FLUX), ("z_image", _Z_IMAGE))
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

    check_flux_rows(where, raw)
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
