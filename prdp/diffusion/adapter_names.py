"""Names of tensors in LoRA files, converted to peft's by diffusers' own converters, and where it has none by ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prdp.diffusion.adapter_tensors import (
    PARTS,
    PEFT_CONFIG,
    PEFT_FILE,
    PEFT_PREFIX,
    TEXT,
    peft_of_text,
    read_peft_config,
    read_tensors,
)
from prdp.diffusion.fused_factors import authors_layout, check_flux_rows, split_factors
from prdp.diffusion.original_layers import STABLE_DIFFUSION_3_LAYERS
from prdp.support.errors import StartError

if TYPE_CHECKING:
    import torch

UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, RuntimeError, OSError, AssertionError)
"""What diffusers raises for names and shapes that it makes nothing of."""


def converted(
    where: str, file: Path, pipeline: Any, component: str, network: Any
) -> tuple[dict[str, torch.Tensor], dict[str, str], dict[str, float], dict[str, Any] | None]:
    """Tensors under peft's names, those names -> names in the file, kohya's alphas, and metadata of diffusers."""
    raw = read_tensors(where, file)
    names = {id(value): name for name, value in raw.items()}
    alphas: dict[str, float] = {}
    if file.name == PEFT_FILE:
        settings = read_peft_config(where, file.parent / PEFT_CONFIG)
        inner = {name.removeprefix(PEFT_PREFIX): value for name, value in raw.items()}
        settings["target_modules"] = list(dict.fromkeys(re.sub(r"\.lora_[AB]\.weight$", "", name) for name in inner))
        metadata = {f"{component}.{key}": value for key, value in settings.items()}
        state = {f"{component}.{name}": value for name, value in inner.items()}
        for part, tensors, config in peft_of_text(where, file.parent):
            metadata |= {f"{part}.{key}": value for key, value in config.items()}
            for name, value in tensors.items():
                state[f"{part}.{name.removeprefix(PEFT_PREFIX)}"], names[id(value)] = value, f"{part}/{name}"
    elif (layout := authors_layout(raw)) is STABLE_DIFFUSION_3_LAYERS:
        state, origin = _of_authors(where, raw)
        more, origins, alphas = _kohya_of_text(where, raw)
        return state | more, origin | origins, alphas, None
    elif component == "transformer" and (text := next((name for name in raw if name.startswith("lora_te")), None)):
        raise StartError(f"{where}: {text}: adapters of text encoders are not computed, those of the transformer are")
    elif layout is not None:
        return *_of_authors(where, raw), {}, None
    else:
        check_flux_rows(where, raw)
        options = lora_options(pipeline, network)
        try:
            state, *given, _ = pipeline.lora_state_dict(dict(raw), return_lora_metadata=True, **options)
            metadata = pipeline.lora_state_dict(
                str(file.parent),
                weight_name=file.name,
                use_safetensors=True,
                local_files_only=True,
                return_lora_metadata=True,
                **options,
            )[-1]
        except UNREADABLE as error:
            raise StartError(f"{where}: diffusers makes no LoRA of its tensors: {_told(error)}") from error
        alphas = dict(given[0] or {}) if given else {}
        if any(id(value) not in names for value in state.values()):
            return state, _origins(where, raw, state, pipeline), alphas, metadata
    result, origin = {}, {}
    for name, value in state.items():
        plain = peft_name(name)
        result[plain], origin[plain] = value, names.get(id(value), name)
    for name in raw:
        if name not in origin.values() and not (alphas and name.endswith(".alpha")):
            raise StartError(f"{where}: {name}: diffusers leaves it out")
    return result, origin, alphas, metadata


def lora_options(pipeline: Any, network: Any) -> dict[str, Any]:
    """What `lora_state_dict` needs: for names of Stability AI's UNet, which trainers keep, and for alphas of FLUX."""
    from diffusers.loaders import FluxLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin

    if issubclass(pipeline, StableDiffusionXLLoraLoaderMixin):
        return {"unet_config": network.config}
    return {"return_alphas": True} if issubclass(pipeline, FluxLoraLoaderMixin) else {}


def peft_name(name: str) -> str:
    """A tensor's name of any version of diffusers as peft has it."""
    from diffusers.utils import convert_state_dict_to_peft, convert_unet_state_dict_to_peft
    from diffusers.utils.state_dict_utils import StateDictType

    if ".lora_A." in name or ".lora_B." in name:
        return name
    # One by one: for a whole file diffusers takes the scheme of its first name for that of all.
    if name.startswith(TEXT):
        return str(next(iter(convert_state_dict_to_peft({name: None}, original_type=StateDictType.DIFFUSERS_OLD))))
    return str(next(iter(convert_unet_state_dict_to_peft({name: None}))))


def plain_layer(name: str) -> str:
    """The layer of a name of an alpha, which in diffusers' conversion may be that of a whole tensor."""
    tensor = name if name.endswith(".weight") else f"{name}.lora.down.weight"
    return peft_name(tensor).partition(".lora_A.")[0]


def _kohya_of_text(
    where: str, raw: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, str], dict[str, float]]:
    """Of kohya's names those of CLIP: tensors under peft's names, those names -> names in the file, and alphas."""
    from diffusers.loaders import StableDiffusionXLLoraLoaderMixin

    given = {name: value for name, value in raw.items() if name.startswith("lora_te")}
    if other := next((name for name in given if name.startswith("lora_te3_")), None):
        raise StartError(f"{where}: {other}: adapters of T5 are not computed, those of CLIP and of the transformer are")
    if not given:
        return {}, {}, {}
    names = {id(value): name for name, value in given.items()}
    try:
        state, alphas = StableDiffusionXLLoraLoaderMixin.lora_state_dict(dict(given))
    except UNREADABLE as error:
        raise StartError(f"{where}: diffusers makes no LoRA of its tensors: {_told(error)}") from error
    found = {peft_name(name): value for name, value in state.items()}
    return found, {name: names[id(value)] for name, value in found.items()}, dict(alphas or {})


def _of_authors(where: str, raw: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Of names of layers that are their authors': tensors under peft's names with their scales, and those names ->
    names in the file.
    """
    state, origin = {}, {}
    for layer, ((down, up), scale, first) in split_factors(where, raw).items():
        for part, value in (("A", down.float()), ("B", up.float() * scale)):
            name = f"transformer.{layer}.lora_{part}.weight"
            state[name], origin[name] = value, first
    return state, origin


def _origins(
    where: str, raw: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], pipeline: Any
) -> dict[str, str]:
    """Names that diffusers makes -> those in the file, where it scales, splits or fuses the factors of a layer.

    Raises:
        StartError: a layer that nothing becomes of; names a tensor of it.
    """
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in raw.items():
        layers.setdefault(re.split(PARTS, name)[0], {})[name] = value
    origin: dict[str, str] = {}
    for tensors in layers.values():
        first = min(tensors)
        try:
            made = pipeline.lora_state_dict(dict(tensors))
        except UNREADABLE as error:
            raise StartError(f"{where}: {first}: diffusers makes no LoRA of it: {_told(error)}") from error
        if not made or made.keys() - state.keys():
            raise StartError(f"{where}: {first}: diffusers leaves it out")
        origin |= dict.fromkeys(made, first)
    return origin


def _told(error: Exception) -> str:
    """What an error says on one line; of those that say nothing, their kind."""
    return " ".join(str(error).split()) or type(error).__name__
