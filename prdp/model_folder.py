"""Whether a model can be loaded from where the configuration says, without loading it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from prdp.errors import StartError

EMBEDDED = "shapes"
MIXTURES = "gaussian_mixtures"
"""`model.path` of the world of mixtures, which is formulas and has neither files nor a tokenizer."""
EMBEDDED_FOLDER = Path(__file__).parent / "shapes" / "pipeline"
INDEX = "model_index.json"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_WEIGHTS = ("*.safetensors", "*.bin")
_WEIGHTED = ("unet", "vae", "text_encoder")


def model_location(path: str) -> str:
    """What to hand to diffusers for `model.path`: the embedded pipeline for 'shapes', '~' expanded."""
    return str(EMBEDDED_FOLDER) if path == EMBEDDED else os.path.expanduser(path)


def check_model(path: str, variant: str | None = None, revision: str | None = None) -> None:
    """Check `model.path`: a whole folder in diffusers format, or a hub id that is cached or can be fetched.

    Raises:
        StartError: naming the folder or file that is missing, half-written or not of a diffusers pipeline.
    """
    if path == MIXTURES:
        return
    location = Path(model_location(path))
    where = f"model.path={path}"
    if location.is_dir():
        _check_folder(where, location, variant)
    elif location.exists():
        raise StartError(f"{where}: {location} is a file, must be a folder in diffusers format")
    elif path != EMBEDDED and _HUB_ID.fullmatch(path):
        _check_hub(where, path, revision)
    else:
        raise StartError(f"{where}: there is no folder {location}")


def _check_folder(where: str, folder: Path, variant: str | None) -> None:
    index = _read_json(where, folder / INDEX)
    components = {
        name: entry
        for name, entry in index.items()
        if isinstance(entry, list) and len(entry) == 2 and entry[0] is not None
    }
    missing = [name for name in _WEIGHTED if name not in components]
    if missing:
        raise StartError(f"{where}: {folder / INDEX} names no {', '.join(missing)}; is it a Stable Diffusion pipeline?")
    for name in components:
        if name not in ("safety_checker", "feature_extractor") and not (folder / name).is_dir():
            raise StartError(f"{where}: {folder} is incomplete: {INDEX} names {name}, but there is no folder {name}/")
    for name in _WEIGHTED:
        _read_json(where, folder / name / "config.json")
        _check_weights(where, folder / name, variant)


def _check_weights(where: str, folder: Path, variant: str | None) -> None:
    files = sorted(file for pattern in _WEIGHTS for file in folder.glob(pattern))
    if variant is not None:
        files = [file for file in files if f".{variant}." in file.name]
    if not files:
        with_variant = f" of variant '{variant}'" if variant is not None else ""
        raise StartError(f"{where}: {folder} holds no weights{with_variant} (*.safetensors)")
    for file in files:
        if file.stat().st_size == 0:
            raise StartError(f"{where}: {file} is empty")
        if file.suffix == ".safetensors":
            _check_safetensors(where, file)


def _check_safetensors(where: str, file: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy"):
            pass
    except SafetensorError as error:
        raise StartError(f"{where}: {file} is not a whole safetensors file, half-written perhaps: {error}") from None


def _read_json(where: str, file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise StartError(f"{where}: {file} is missing; expected a folder in diffusers format")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StartError(f"{where}: {file} is half-written or damaged: {error}") from None
    if not isinstance(content, dict):
        raise StartError(f"{where}: {file} must hold a JSON object, got {type(content).__name__}")
    return content


def _check_hub(where: str, path: str, revision: str | None) -> None:
    from huggingface_hub import constants, try_to_load_from_cache

    if constants.HF_HUB_OFFLINE and not isinstance(try_to_load_from_cache(path, INDEX, revision=revision), str):
        raise StartError(
            f"{where}: there is no such folder, and the hub repository of that name is not in the local cache, which "
            "HF_HUB_OFFLINE=1 restricts the run to"
        )
