"""Files of LoRAs as they lie on the disk: found, opened, and what they tell of ranks and alphas."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prdp.support.errors import StartError
from prdp.support.json_lines import load_json

if TYPE_CHECKING:
    import torch

LORA_FILE = "pytorch_lora_weights.safetensors"
"""Of diffusers."""
PEFT_FILE = "adapter_model.safetensors"
PEFT_CONFIG = "adapter_config.json"
PEFT_PREFIX = "base_model.model."
TEXT = "text_encoder"
"""With which the names of text encoders begin."""
_OF_A_RUN = "weights"
"""Folder inside a run's where its adapter is."""
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
PEFT_KEYS = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora")
_PEFT_STARTS = (True, False, None, "gaussian")
"""Values of init_lora_weights that leave the base's weights as they are."""
PARTS = r"\.(?:lora_(?:down|up|A|B)(?:\.default)?\.weight|lora\.(?:down|up)\.weight|alpha)$"
"""Of a layer, behind its name."""
_LEAST_BYTES, _MATRIX = 2, 2
"""Of a number and of dimensions of a factor."""


def adapter_file(key: str, path: str) -> Path:
    """The safetensors file that a path names: itself, or the one in a folder of diffusers or PEFT.

    Args:
        key: of the configuration, for messages.

    Raises:
        StartError: there is none; pickles are never opened.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        found = next((place / name for name in (LORA_FILE, PEFT_FILE) if (place / name).is_file()), None)
        if found is None:
            pickles = sorted(one.name for one in place.iterdir() if one.suffix in _PICKLES)
            has = f"; {pickles[0]} is a pickle, which may run code and is never opened" if pickles else ""
            hint = f"; take its folder {_OF_A_RUN}" if (place / _OF_A_RUN / LORA_FILE).is_file() else ""
            raise StartError(f"{key}={path}: the folder holds neither {LORA_FILE} nor {PEFT_FILE}{has}{hint}")
        place = found
    if not place.is_file():
        raise StartError(f"{key}={path}: there is no such file or folder")
    if place.suffix != ".safetensors":
        raise StartError(f"{key}={path}: must be a .safetensors file, or a folder with one; others are never opened")
    if place.name == PEFT_FILE and not (place.parent / PEFT_CONFIG).is_file():
        raise StartError(f"{key}={path}: {PEFT_CONFIG} is missing beside {PEFT_FILE}, which does not tell its alpha")
    return place


def adapts_text(file: Path) -> bool:
    """Whether a LoRA file has tensors of text encoders, by their names."""
    from safetensors import safe_open

    if file.name == PEFT_FILE:
        return any((place / PEFT_FILE).is_file() for place in file.parent.glob(f"{TEXT}*"))
    with safe_open(file, "pt") as opened:
        return any(name.startswith((TEXT, "lora_te")) for name in list(opened.keys()))


def read_tensors(where: str, file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a LoRA file under its own names; they are mapped from the disk, not copied.

    Raises:
        StartError: it is no safetensors file, is empty, or holds DoRA.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        raw = load_file(file)
    except (SafetensorError, OSError) as error:
        raise StartError(f"{where}: cannot be read as safetensors: {error}") from error
    if not raw:
        raise StartError(f"{where}: holds no tensor")
    for name, value in raw.items():
        if problem := _tensor_problem(name, value):
            raise StartError(f"{where}: {name}: {problem}")
    scaled = next((name for name in raw if "dora_scale" in name or "magnitude" in name), None)
    if scaled is not None:
        raise StartError(f"{where}: {scaled}: DoRA is not computed, plain LoRA is")
    return dict(raw)


def _tensor_problem(name: str, value: torch.Tensor) -> str:
    """What no factor and no alpha is like, which libraries fail at in many ways; empty where it may be one."""
    if name.endswith(".alpha"):
        return "" if value.numel() == 1 and math.isfinite(float(value)) else "must be one finite number"
    if not re.search(PARTS, name):
        return ""
    if not value.is_floating_point() or value.itemsize < _LEAST_BYTES:
        told = str(value.dtype).removeprefix("torch.")
        return f"must hold finite numbers of float32, bfloat16 or float16, and holds {told}"
    return "" if value.ndim >= _MATRIX and value.numel() else f"has shape {list(value.shape)}, which no factor has"


def read_peft_config(where: str, file: Path) -> dict[str, Any]:
    """Of adapter_config.json what decides over shapes and scales.

    Raises:
        StartError: it cannot be read, or tells of adapters that are not plain LoRA.
    """
    try:
        config = load_json(file.read_text(encoding="utf-8"))
        if config.get("peft_type") != "LORA":
            raise StartError(f"{where}: {file.name}: peft_type={config.get('peft_type')}: must be LORA")
        found = {key: config[key] for key in PEFT_KEYS if config.get(key) is not None}
        start = config.get("init_lora_weights")
    except (ValueError, AttributeError, OSError) as error:
        if isinstance(error, StartError):
            raise
        raise StartError(f"{where}: {file} cannot be read: {error}") from error
    if missing := [key for key in ("r", "lora_alpha") if key not in found]:
        raise StartError(f"{where}: {file.name}: {missing[0]} is missing")
    if start not in _PEFT_STARTS:
        raise StartError(
            f"{where}: {file.name}: init_lora_weights={start}: adapters that change the base's own weights at their "
            "start are not computed"
        )
    return found


def told_scale(told: str, settings: Mapping[str, Any], layer: str, rank: int) -> float:
    """alpha / rank of a layer as peft takes it from its configuration.

    Args:
        told: begins messages.
        settings: of peft's LoraConfig.

    Raises:
        StartError: settings of other adapters than plain LoRA, or that do not fit the factors.
    """
    from peft.utils.other import get_pattern_key

    if settings.get("use_dora") or settings.get("lora_bias"):
        raise StartError(f"{told}: its settings ask for DoRA or a bias; plain LoRA alone is computed")
    values = []
    for pattern, common in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")):
        given = settings.get(pattern) or {}
        try:
            value = given.get(get_pattern_key(list(given), layer), settings.get(common))
        except (re.error, TypeError, AttributeError) as error:
            raise StartError(f"{told}: its settings tell a {pattern} that is none: {error}") from error
        if not isinstance(value, int | float) or not value > 0:
            raise StartError(f"{told}: its settings tell {common}={value}, expected a number above 0")
        values.append(float(value))
    if values[0] != rank:
        raise StartError(f"{told}: has rank {rank}, and its settings tell {values[0]:g}")
    return values[1] / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def peft_of_text(where: str, folder: Path) -> list[tuple[str, dict[str, torch.Tensor], dict[str, Any]]]:
    """Component, tensors and settings of the folders of text encoders beside a network's file of PEFT, in its folder.

    Raises:
        StartError: a file that cannot be read; names it.
    """
    found = []
    for place in sorted(folder.glob(f"{TEXT}*")):
        if (place / PEFT_FILE).is_file():
            told = f"{where}: {place.name}"
            settings = read_peft_config(told, place / PEFT_CONFIG)
            found.append((place.name, read_tensors(told, place / PEFT_FILE), settings))
    return found
