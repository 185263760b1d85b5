"""LoRA files read by their names alone: no network and no pipeline are loaded, and any family will do.

What a layer is called is what diffusers calls it, with the component of the pipeline before it:
`unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q`. Names of kohya's trainers become these by diffusers'
own converters.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prdp.diffusion.adapter_files import AdaptedLayer
from prdp.diffusion.adapter_tensors import (
    PEFT_CONFIG,
    PEFT_FILE,
    PEFT_PREFIX,
    adapter_file,
    peft_of_text,
    read_peft_config,
    read_tensors,
    told_scale,
)
from prdp.diffusion.fused_factors import authors_layout
from prdp.experts.kohya import FOREIGN_PREFIXES, KOHYA_PREFIXES, from_kohya
from prdp.experts.names import FACTOR, diffusers_name, peft_component
from prdp.support.errors import StartError
from prdp.support.json_lines import load_json

if TYPE_CHECKING:
    import torch

HEADER = "lora_adapter_metadata"
"""Key of the header of diffusers' files under which they tell ranks and alphas."""
_OTHER_KINDS = ("lokr_", "hada_", "lora_mid", "oft_", "diff_b")


@dataclass(frozen=True)
class Expert:
    """A LoRA and where it comes from.

    Attributes:
        name: for tables and messages.
        source: its file.
        digest: SHA-256 of the file, hexadecimal.
        layers: name with the component before it -> its factors, of the dtype of the file and mapped from it.
    """

    name: str
    source: Path
    digest: str
    layers: Mapping[str, AdaptedLayer]


def read_expert(key: str, path: str, name: str | None = None) -> Expert:
    """Read a LoRA of diffusers, PEFT or kohya.

    Args:
        key: of the configuration, for messages.
        path: a safetensors file, or a folder of diffusers or PEFT; pickles are never opened.
        name: None takes the file's.

    Raises:
        StartError: it cannot be read as a plain LoRA; names the file and the tensor.
    """
    file = adapter_file(key, path)
    layers = read_layers(f"{key}: {file}", file)
    with open(file, "rb") as opened:
        digest = hashlib.file_digest(opened, hashlib.sha256).hexdigest()
    return Expert(name or file.stem, file, digest, layers)


def read_layers(where: str, file: Path) -> dict[str, AdaptedLayer]:
    """The factors of every layer in a LoRA file.

    Args:
        where: begins messages.

    Raises:
        StartError: a tensor that is no factor of a LoRA, lacks its counterpart, or does not fit it; names it.
    """
    raw = read_tensors(where, file)
    if other := next((name for name in raw if any(mark in name for mark in _OTHER_KINDS)), None):
        raise StartError(f"{where}: {other}: only plain LoRA is computed, no LoKr, LoHa, OFT or Tucker factors")
    settings: dict[str, dict[str, Any]] = {}
    if file.name == PEFT_FILE:
        component = peft_component(where, [name.removeprefix(PEFT_PREFIX) for name in raw])
        state, origins = _renamed(where, raw, lambda name: f"{component}.{name.removeprefix(PEFT_PREFIX)}")
        settings[component] = read_peft_config(where, file.parent / PEFT_CONFIG)
        for part, tensors, config in peft_of_text(where, file.parent):
            inner = {f"{part}/{name}": value for name, value in tensors.items()}
            more, names = _renamed(where, inner, _peft_text_name)
            state, origins, settings[part] = state | more, origins | names, _with_model(config)
    elif authors_layout(raw) is not None or any(name.startswith((*KOHYA_PREFIXES, *FOREIGN_PREFIXES)) for name in raw):
        state, origins = from_kohya(where, raw)
    elif any(name.startswith(PEFT_PREFIX) for name in raw):
        raise StartError(
            f"{where}: has PEFT's names, and PEFT keeps the alphas in another file: call it {PEFT_FILE}, with its "
            f"{PEFT_CONFIG} beside it"
        )
    else:
        state, origins = _renamed(where, raw, diffusers_name)
        settings = _header(where, file)
    return _layers(where, state, origins, settings)


def diffusers_state(file: str) -> dict[str, torch.Tensor]:
    """A LoRA of any format as `load_lora_weights` of diffusers takes it: float32, scales in it.

    Raises:
        StartError: see `read_layers`.
    """
    state = {}
    for name, layer in read_layers(file, Path(file)).items():
        state[f"{name}.lora_A.weight"] = layer.down.float()
        state[f"{name}.lora_B.weight"] = layer.up.float() * layer.scale
    return state


def _peft_text_name(name: str) -> str:
    """<component>/<PEFT's name> in the scheme of `diffusers_name`."""
    component, _, inner = name.partition("/")
    return diffusers_name(f"{component}.{inner.removeprefix(PEFT_PREFIX)}")


def _with_model(config: dict[str, Any]) -> dict[str, Any]:
    """Settings whose patterns of whole paths begin as those of `diffusers_name` do."""
    patterns = {key: config[key] for key in ("rank_pattern", "alpha_pattern") if key in config}
    return config | {
        key: {re.sub(r"^\^encoder\b", r"^text_model\.encoder", name): value for name, value in pattern.items()}
        for key, pattern in patterns.items()
    }


def _renamed(
    where: str, raw: Mapping[str, torch.Tensor], rename: Callable[[str], str]
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors under other names, and those -> the names they had."""
    state: dict[str, torch.Tensor] = {}
    origins: dict[str, str] = {}
    for name, value in raw.items():
        new = rename(name)
        if new in state:
            raise StartError(f"{where}: {name} and {origins[new]} are the same factor of one layer")
        state[new], origins[new] = value, name
    return state, origins


def _header(where: str, file: Path) -> dict[str, dict[str, Any]]:
    """Component -> what the header tells of its ranks and alphas; empty where a file tells nothing."""
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        text = (opened.metadata() or {}).get(HEADER)
    if text is None:
        return {}
    try:
        flat = dict(load_json(text))
    except (ValueError, TypeError) as error:
        raise StartError(f"{where}: {HEADER} in its header cannot be read: {error}") from error
    found: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        component, _, name = key.partition(".")
        found.setdefault(component, {})[name] = value
    return found


def _layers(
    where: str,
    state: Mapping[str, torch.Tensor],
    origins: Mapping[str, str],
    settings: Mapping[str, Mapping[str, Any]],
) -> dict[str, AdaptedLayer]:
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in state.items():
        told = f"{where}: {origins.get(name, name)}"
        match = re.fullmatch(FACTOR, name)
        if match is None and not name.endswith(".alpha"):
            raise StartError(f"{told}: is no factor of a LoRA of a UNet, a transformer or a text encoder")
        if (match and not value.is_floating_point()) or not value.isfinite().all():
            raise StartError(f"{told}: must hold finite numbers")
        layer, part = (match[1], match[2]) if match else (name.removesuffix(".alpha"), "alpha")
        parts.setdefault(layer, {})[part] = value
    layers = {}
    for layer, found in sorted(parts.items()):
        told = f"{where}: {layer}"
        for part, words in (("A", "down (lora_A)"), ("B", "up (lora_B)")):
            if part not in found:
                raise StartError(f"{told}: its factor {words} is missing")
        down, up = found["A"], found["B"]
        inside = (1,) * (up.ndim - 2)
        if down.ndim not in (2, 4) or up.ndim != down.ndim or up.shape[1:] != (down.shape[0], *inside):
            raise StartError(
                f"{told}: down has shape {list(down.shape)} and up {list(up.shape)}; expected [rank, in, ...] and "
                "[out, rank, ...]"
            )
        rank = int(down.shape[0])
        component, _, inner = layer.partition(".")
        scale = float(found["alpha"]) / rank if "alpha" in found else 1.0
        if settings.get(component) and "alpha" not in found:
            scale = told_scale(told, settings[component], inner, rank)
        layers[layer] = AdaptedLayer(down, up, scale)
    return layers
