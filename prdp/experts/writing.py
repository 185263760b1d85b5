"""LoRA files in the formats of diffusers, kohya and PEFT, read back before they count as written."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prdp.diffusion.adapter_files import AdaptedLayer
from prdp.diffusion.adapter_tensors import LORA_FILE, PEFT_FILE, PEFT_PREFIX
from prdp.diffusion.clip_layers import peft_path
from prdp.experts.kohya import fused_tensors, kohya_layout, kohya_names
from prdp.experts.lora_files import HEADER, read_layers
from prdp.experts.names import is_of_text_encoder

if TYPE_CHECKING:
    import torch

RECORD = "prdp_merge"
"""Key of the header under which a file tells what it was merged from."""


def check_format(layers: Mapping[str, AdaptedLayer], form: str, family: str | None = None) -> None:
    """Refuse layers that a format has no name for.

    Args:
        family: `model.family`, where it is known.

    Raises:
        ConfigError: names the layer.
    """
    if form == "kohya":
        layout = kohya_layout(layers, family)
        kohya_names([name for name in layers if layout is None or is_of_text_encoder(name)])


def write_lora(
    folder: Path,
    layers: Mapping[str, AdaptedLayer],
    form: str,
    record: Mapping[str, Any],
    family: str | None = None,
) -> Path:
    """Write a LoRA into a folder, and read it back; the file.

    Args:
        folder: that is there.
        layers: name with its component -> factors whose scale is 1: alpha is the rank.
        form: diffusers, kohya or peft, in which each text encoder has a folder of its own beside the file.
        record: goes into the header.
        family: `model.family`, where it is known.

    Raises:
        ConfigError: see `check_format`.
        ValueError: a layer that is not read back as it was written.
    """
    from safetensors.torch import save_file

    check_format(layers, form, family)
    header = {"format": "pt", RECORD: json.dumps(record)}
    tensors: dict[str, torch.Tensor] = {}
    if form == "kohya":
        tensors = _kohya_tensors(layers, family)
    elif form == "peft":
        text = {name: layer for name, layer in layers.items() if is_of_text_encoder(name)}
        network = {name: layer for name, layer in layers.items() if name not in text}
        tensors = _peft_part(folder, network)
        with_unet = any(name.startswith("unet.") for name in network)
        for component in dict.fromkeys(name.partition(".")[0] for name in text):
            part = {
                f"{component}.{peft_path(component, name.partition('.')[2], with_unet)}": layer
                for name, layer in text.items()
                if name.startswith(f"{component}.")
            }
            place = folder / component
            place.mkdir()
            save_file(_peft_part(place, part), place / PEFT_FILE, metadata=header)
    else:
        for name, layer in layers.items():
            tensors |= _factors(name, layer)
        header[HEADER] = json.dumps(_diffusers_header(layers), sort_keys=True)
    file = folder / (PEFT_FILE if form == "peft" else LORA_FILE)
    save_file(tensors, file, metadata=header)
    if form == "kohya" and kohya_layout(layers, family) is not None:
        _check_fused(file, layers)
    else:
        _check_written(file, layers)
    return file


def _peft_part(folder: Path, layers: Mapping[str, AdaptedLayer]) -> dict[str, torch.Tensor]:
    """PEFT's tensors of one network, whose settings are written into a folder."""
    _lora_config(layers).save_pretrained(str(folder))
    tensors: dict[str, torch.Tensor] = {}
    for name, layer in layers.items():
        tensors |= _factors(f"{PEFT_PREFIX}{name.partition('.')[2]}", layer)
    return tensors


def _factors(name: str, layer: AdaptedLayer) -> dict[str, torch.Tensor]:
    return {f"{name}.lora_A.weight": layer.down, f"{name}.lora_B.weight": layer.up}


def _kohya_tensors(layers: Mapping[str, AdaptedLayer], family: str | None) -> dict[str, torch.Tensor]:
    """UNets get one alpha for all layers, whatever their ranks: diffusers takes one for all layers of attention."""
    import torch

    layout, tensors = kohya_layout(layers, family), dict[str, torch.Tensor]()
    if layout is not None:
        fused = {name: one for name, one in layers.items() if not is_of_text_encoder(name)}
        tensors = fused_tensors(layout, fused)
        layers = {name: one for name, one in layers.items() if name not in fused}
    common = _settings(layers)["r"] if layers else 0
    for name, kohya in kohya_names(list(layers)).items():
        layer = layers[name]
        alpha = float(layer.rank if name.startswith("transformer.") else common)
        tensors[f"{kohya}.lora_down.weight"] = layer.down
        tensors[f"{kohya}.lora_up.weight"] = layer.up if layer.rank == alpha else layer.up * (layer.rank / alpha)
        tensors[f"{kohya}.alpha"] = torch.tensor(alpha)
    return tensors


def _settings(layers: Mapping[str, AdaptedLayer], start: str = "^") -> dict[str, Any]:
    """Arguments of peft's LoraConfig for layers without their component: the common rank, and others by name.

    Args:
        start: of patterns; empty where something may stand before the names.
    """
    ranks = {name: layer.rank for name, layer in layers.items()}
    common = Counter(ranks.values()).most_common(1)[0][0]
    # peft takes a pattern for the end of a name unless it begins with this sign.
    others = {f"{start}{re.escape(name)}": rank for name, rank in ranks.items() if rank != common}
    return {"r": common, "lora_alpha": common, "rank_pattern": others, "alpha_pattern": dict(others)}


def _lora_config(layers: Mapping[str, AdaptedLayer]) -> Any:
    from peft import LoraConfig

    inner = {name.partition(".")[2]: layer for name, layer in layers.items()}
    return LoraConfig(**_settings(inner), target_modules="|".join(map(re.escape, inner)), inference_mode=True)


def _diffusers_header(layers: Mapping[str, AdaptedLayer]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for component in dict.fromkeys(name.partition(".")[0] for name in layers):
        inner = {
            name.removeprefix(f"{component}."): layer
            for name, layer in layers.items()
            if name.startswith(f"{component}.")
        }
        settings = _settings(inner)
        if is_of_text_encoder(component):
            # Some versions of transformers put text_model before CLIP's paths; diffusers takes these names as they are.
            inner = {name.removeprefix("text_model."): layer for name, layer in inner.items()}
            settings = _settings(inner, start="")
        settings["target_modules"] = list(inner)
        found |= {f"{component}.{key}": value for key, value in settings.items()}
    return found


def _check_written(file: Path, layers: Mapping[str, AdaptedLayer]) -> None:
    import torch

    found = read_layers(str(file), file)
    for name, layer in layers.items():
        again = found.get(name)
        if (
            again is None
            or not again.down.equal(layer.down)
            or again.up.shape != layer.up.shape
            or not torch.allclose(again.scale * again.up, layer.scale * layer.up, rtol=1e-6, atol=0)
        ):
            raise ValueError(f"{file}: layer {name} is not read back as it was written")
    if other := found.keys() - layers.keys():
        raise ValueError(f"{file}: layer {min(other)} is read back, and was not written")


def _check_fused(file: Path, layers: Mapping[str, AdaptedLayer]) -> None:
    """Ranks differ where layers were one in the file: what they do to a vector is compared, in float64."""
    import torch

    found = read_layers(str(file), file)
    for name in layers.keys() | found.keys():
        one, again = layers.get(name), found.get(name)
        known = one or again
        assert known is not None
        vector = torch.randn(known.down[0].numel(), dtype=torch.float64)
        expected, got = (_applied(each, vector) for each in (one, again))
        if not torch.allclose(got, expected, rtol=1e-5, atol=1e-6 * float(torch.as_tensor(expected).abs().max())):
            raise ValueError(f"{file}: layer {name} is not read back as it was written")


def _applied(layer: AdaptedLayer | None, vector: torch.Tensor) -> torch.Tensor:
    import torch

    if layer is None:
        return torch.zeros(1, dtype=torch.float64)
    down, up = (one.flatten(1).double() for one in (layer.down, layer.up))
    return layer.scale * up @ (down @ vector)
