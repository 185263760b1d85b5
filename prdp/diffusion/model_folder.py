"""Where a model's files are, and whether they are whole: found out without loading them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from prdp.diffusion.pipeline_formats import FORMATS, STABLE_DIFFUSION, T5_TOKENIZERS, PipelineFormat
from prdp.support.errors import StartError
from prdp.support.json_lines import load_json
from prdp.support.suggest import nearest

EMBEDDED = "shapes"
MIXTURES = "gaussian_mixtures"
"""`model.path` of the world of mixtures, which is formulas and has neither files nor a tokenizer."""
_SHAPES = Path(__file__).parents[1] / "worlds" / "shapes"
EMBEDDED_FOLDERS = {EMBEDDED: _SHAPES / "pipeline", "shapes_flow": _SHAPES / "flow_pipeline"}
"""`model.path` -> folder of the pipelines that ship with the package."""
INDEX = "model_index.json"
SCHEDULER_FILE = "scheduler_config.json"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_LIBRARIES = ("diffusers", "transformers")
"""Where components may come from, beside the module of diffusers with the pipeline itself."""
_NOT_NEEDED = ("safety_checker", "feature_extractor", "image_encoder")
PICKLED = (".bin", ".ckpt", ".pt", ".msgpack", ".h5", ".onnx")


def model_location(path: str) -> str:
    """What to hand to diffusers for `model.path`: an embedded pipeline for its name, '~' expanded."""
    return str(EMBEDDED_FOLDERS[path]) if path in EMBEDDED_FOLDERS else os.path.expanduser(path)


def found_from_anywhere(path: str) -> str:
    """What names the same model in a program that is run in another folder: files and folders absolute, hub ids as
    they are."""
    place = model_location(path)
    return os.path.abspath(place) if os.path.exists(place) else place


def check_model(
    path: str,
    variant: str | None = None,
    revision: str | None = None,
    kind: PipelineFormat = STABLE_DIFFUSION,
    config: str | None = None,
) -> Path | None:
    """Check that `model.path` is a whole pipeline in diffusers format, a hub id of one, or a checkpoint in one file.

    Of a hub repository that may be downloaded the small files are fetched, and weights are not looked for.

    Args:
        config: `model.config`, a folder or a hub id, for a checkpoint in one file; its weights are not looked for.

    Returns:
        the folder with the pipeline's configurations; None for the world of mixtures.

    Raises:
        StartError: naming the folder or file that is missing, half-written or of another kind.
    """
    if path == MIXTURES:
        return None
    where = f"model.path={path}"
    if is_single_file(path):
        from prdp.diffusion.single_file import check_file

        check_file(where, Path(model_location(path)), kind)
        if config is None:
            raise StartError(
                f"{where}: is one file, which has weights alone: set model.config to a folder in diffusers format of a "
                "model of the same architecture, for its configurations, scheduler and tokenizers; see docs/models.md"
            )
        return _located(f"model.config={config}", config, None, revision, kind, weights=False)
    if Path(path).suffix == ".safetensors" and not Path(model_location(path)).exists():
        raise StartError(f"{where}: there is no such file{_hint(Path(model_location(path)))}")
    if config is not None:
        raise StartError(f"model.config={config}: must be null: {where} is no file, and has configurations of its own")
    return _located(where, path, variant, revision, kind)


def is_single_file(path: str) -> bool:
    """Whether `model.path` names a file."""
    return path not in EMBEDDED_FOLDERS and Path(model_location(path)).is_file()


def _located(
    where: str, path: str, variant: str | None, revision: str | None, kind: PipelineFormat, weights: bool = True
) -> Path:
    """The folder of a pipeline that is whole."""
    location = Path(model_location(path))
    if location.is_dir():
        _check_folder(where, location, variant, kind, weights)
        return location
    if location.exists():
        raise StartError(f"{where}: {location} is a file, must be a folder in diffusers format")
    if path not in EMBEDDED_FOLDERS and _HUB_ID.fullmatch(path):
        return _check_hub(where, path, variant, revision, kind, weights)
    raise StartError(f"{where}: there is no folder {location}{_hint(location)}")


def fetch_model(
    path: str, variant: str | None = None, revision: str | None = None, kind: PipelineFormat = STABLE_DIFFUSION
) -> Path:
    """The folder with a pipeline's files; those of a hub repository that are not in its cache are downloaded.

    Raises:
        ValueError: the hub does not give them.
    """
    location = Path(model_location(path))
    if location.is_dir():
        return location
    import diffusers

    without = {name: value for name, value in kind.arguments.items() if value is None}
    try:
        return Path(
            getattr(diffusers, kind.pipeline).download(
                path, revision=revision, variant=variant, use_safetensors=True, **without
            )
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"model.path={path}: the hub repository cannot be fetched: {_first_line(error)}") from error


def family_in(folder: Path) -> str | None:
    """The `model.family` of a pipeline's folder, by the class that its model_index.json names; None for others."""
    found = _read_json(str(folder), folder / INDEX).get("_class_name")
    return next((one.family for one in FORMATS if found in (one.pipeline, *one.others)), None)


def family_on_hub(path: str) -> str | None:
    """The same of a hub repository whose `INDEX` is in the local cache; None where it is not."""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(path, INDEX)
    return family_in(Path(cached).parent) if isinstance(cached, str) else None


def absent_parts(folder: Path, kind: PipelineFormat) -> list[str]:
    """Optional parts that a pipeline's folder lacks, and those that are not needed here and that `INDEX` names in vain;
    diffusers' `from_pretrained` wants to be told of them."""
    index = _read_json("model", folder / INDEX)
    named = [name for name in _NOT_NEEDED if _is_there(index.get(name)) and name not in kind.arguments]
    return [name for name in (*kind.optional, *named) if not (folder / name).is_dir()]


def read_component(folder: Path, name: str) -> dict[str, Any]:
    """The configuration of a component of a pipeline's folder that `check_model` has found whole."""
    return _read_json("model", folder / name / config_file(name))


def weight_files(folder: Path, name: str, variant: str | None = None) -> list[Path]:
    """The safetensors files of a component, whole or in parts, that diffusers will read; empty when there are none.

    As in diffusers, a component that lacks the variant is taken without it.
    """
    return _files_of(folder, name, variant) or ([] if variant is None else _files_of(folder, name, None))


def _files_of(folder: Path, name: str, variant: str | None) -> list[Path]:
    base = _base(name)
    inserted = "" if variant is None else f".{variant}"
    whole = weights_path(folder, name, variant)
    if whole.is_file():
        return [whole]
    for index in (f"{base}.safetensors.index{inserted}.json", f"{base}{inserted}.safetensors.index.json"):
        if (folder / name / index).is_file():
            parts = _read_json("model", folder / name / index).get("weight_map", {})
            return [folder / name / part for part in sorted(set(parts.values()))]
    return []


def weights_path(folder: Path, name: str, variant: str | None = None) -> Path:
    """Where a component's folder keeps weights that are in one file."""
    return folder / name / f"{_base(name)}{'' if variant is None else f'.{variant}'}.safetensors"


def config_file(name: str) -> str:
    """Where a component's folder keeps its configuration."""
    return SCHEDULER_FILE if name == "scheduler" else "config.json"


def _base(name: str) -> str:
    return "model" if name.startswith("text_encoder") else "diffusion_pytorch_model"


def _check_folder(where: str, folder: Path, variant: str | None, kind: PipelineFormat, weights: bool = True) -> None:
    index = _read_json(where, folder / INDEX)
    _check_classes(where, folder / INDEX, index, kind)
    absent = [name for name in kind.optional if not _is_there(index.get(name))]
    for name, entry in index.items():
        if _is_there(entry) and name not in _NOT_NEEDED and not (folder / name).is_dir():
            raise StartError(f"{where}: {folder} is incomplete: {INDEX} names {name}, but there is no folder {name}/")
    for name in (*kind.components, "scheduler"):
        if name not in absent:
            _read_json(where, folder / name / config_file(name))
    for name, classes in kind.tokenizers.items():
        files = ("tokenizer.json", "spiece.model" if classes == T5_TOKENIZERS else "vocab.json")
        if name not in absent and not any((folder / name / file).is_file() for file in files):
            raise StartError(f"{where}: {folder / name} holds neither {' nor '.join(files)}")
    if weights:
        if variant is not None and not any(_files_of(folder, name, variant) for name in kind.components):
            raise StartError(f"{where}: {_no_weights(folder, kind.network, variant, kind)}")
        for name in kind.components:
            if name not in absent:
                _check_weights(where, folder, name, variant, kind)


def _is_there(entry: Any) -> bool:
    """Whether an entry of model_index.json names a component, and not that there is none."""
    return isinstance(entry, list) and len(entry) == 2 and entry[0] is not None


def _check_classes(where: str, file: Path, index: dict[str, Any], kind: PipelineFormat) -> None:
    found = index.get("_class_name")
    if found is not None and found not in (kind.pipeline, *kind.others):
        other = next((one for one in FORMATS if found in (one.pipeline, *one.others)), None)
        others = ", ".join(one.pipeline for one in FORMATS if one is not kind)
        advice = f"; of other families: {others}" if other is None else f"; set model.family={other.family}"
        raise StartError(f"{where}: {file} is of a {found}; only {kind.pipeline} is computed: {kind.words}{advice}")
    missing = [
        name
        for name in (*kind.components, *kind.tokenizers, "scheduler")
        if not isinstance(index.get(name), list) and name not in kind.optional
    ]
    if missing:
        raise StartError(f"{where}: {file} names no {', '.join(missing)}; is it a pipeline of {kind.words}?")
    for name, expected in kind.components.items():
        if name in kind.optional and not _is_there(index.get(name)):
            continue
        if index[name][-1] != expected:
            raise StartError(f"{where}: {file} says that {name} is of class {index[name][-1]}: must be {expected}")
    for name, entry in index.items():
        # diffusers imports whatever module is named; transformers' Auto classes look for code in the folder.
        if isinstance(entry, list) and any(part is not None for part in entry) and not _is_of_a_library(entry, kind):
            raise StartError(
                f"{where}: {file} takes {name} from {' '.join(map(str, entry))}: must be a class of "
                f"{', '.join((*_LIBRARIES, kind.module))}, since the code of a model's folder is never run"
            )
    for encoder, tokenizer in zip(kind.text_encoders, kind.tokenizers, strict=True):
        if _is_there(index.get(encoder)) and not _is_there(index.get(tokenizer)):
            raise StartError(f"{where}: {file} names {encoder} and no {tokenizer}, without which it reads no prompts")
    if found is None:
        raise StartError(f"{where}: {file} has no _class_name: must be {kind.pipeline}")
    for name, allowed in kind.tokenizers.items():
        if _is_there(index.get(name)) and index[name][-1] not in allowed:
            raise StartError(
                f"{where}: {file} says that {name} is of class {index[name][-1]}: must be {' or '.join(allowed)}"
            )


def _is_of_a_library(entry: list[Any], kind: PipelineFormat) -> bool:
    library, name = entry if len(entry) == 2 else (None, None)
    automatic = library == "transformers" and str(name).startswith("Auto")
    return library in (*_LIBRARIES, kind.module) and isinstance(name, str) and not automatic


def _check_weights(where: str, folder: Path, name: str, variant: str | None, kind: PipelineFormat) -> None:
    files = weight_files(folder, name, variant)
    if not files:
        raise StartError(f"{where}: {_no_weights(folder, name, variant, kind)}")
    for file in files:
        if not file.is_file():
            raise StartError(f"{where}: {file} is missing, a part of the weights that the index beside it names")
        if file.stat().st_size == 0:
            raise StartError(f"{where}: {file} is empty")
        check_safetensors(where, file)


def _no_weights(folder: Path, name: str, variant: str | None, kind: PipelineFormat) -> str:
    """Why a component has no weights, and what to do with those that are there."""
    inside = folder / name
    wanted = "no weights" + (f" of variant '{variant}'" if variant is not None else "") + " (*.safetensors)"
    others = sorted({file.name.split(".")[-2] for file in inside.glob(f"{_base(name)}.*.safetensors")} - {variant})
    if others:
        return f"{inside} holds {wanted}, only those of variant {others[0]}: set model.variant={others[0]}"
    if variant is not None and list(inside.glob("*.safetensors")):
        return f"{inside} holds {wanted}, only those without a variant: set model.variant=null"
    pickled = sorted(file.name for file in inside.iterdir() if file.suffix in PICKLED)
    if pickled:
        return (
            f"{inside} holds {wanted}, only {pickled[0]}, which is pickled and never read here. If you trust who made "
            f"it, convert the folder: python -c \"from diffusers import {kind.pipeline} as P; "
            f"P.from_pretrained('{folder}', use_safetensors=False).save_pretrained('{folder}-safetensors')\""
        )
    return f"{inside} holds {wanted}"


def check_safetensors(where: str, file: Path) -> None:
    """Refuse a file that is not whole, by a StartError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy"):
            pass
    except SafetensorError as error:
        raise StartError(f"{where}: {file} is not a whole safetensors file, half-written perhaps: {error}") from None


def _read_json(where: str, file: Path) -> dict[str, Any]:
    if not file.is_file():
        instead = _found_instead(file.parent) if file.name == INDEX else ""
        raise StartError(f"{where}: {file} is missing; expected a folder in diffusers format{instead}")
    try:
        content = load_json(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StartError(f"{where}: {file} is half-written or damaged: {error}") from None
    if not isinstance(content, dict):
        raise StartError(f"{where}: {file} must hold a JSON object, got {type(content).__name__}")
    return content


def _found_instead(folder: Path) -> str:
    """What a folder without an index is, where that can be told."""
    if (folder / "adapter_config.json").is_file() or list(folder.glob("*lora*.safetensors")):
        return ", and this one has a LoRA, which model.adapters takes"
    if not (folder / "config.json").is_file():
        file = next(iter(sorted(folder.glob("*.safetensors"))), None)
        return "" if file is None else f"; of {file.name} in it the path would be {file}"
    config = _read_json(str(folder), folder / "config.json")
    name = config.get("_class_name") or next(iter(config.get("architectures") or []), None)
    return "" if name is None else f" of a whole pipeline, and this one has a {name} alone"


def _check_hub(
    where: str, path: str, variant: str | None, revision: str | None, kind: PipelineFormat, weights: bool
) -> Path:
    from huggingface_hub import constants, snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    offline = bool(constants.HF_HUB_OFFLINE)
    cached = try_to_load_from_cache(path, INDEX, revision=revision)
    if isinstance(cached, str):
        folder = Path(cached).parent
        if offline or all(
            (folder / name / config_file(name)).is_file()
            for name in (*kind.components, "scheduler")
            if name not in kind.optional
        ):
            _check_folder(where, folder, variant, kind, weights=weights and offline)
            return folder
    if offline:
        raise StartError(
            f"{where}: there is no such folder, and the hub repository of that name is not in the local cache, which "
            f"HF_HUB_OFFLINE=1 restricts the run to{_hint(Path(path))}"
        )
    try:
        folder = Path(snapshot_download(path, revision=revision, allow_patterns=["*.json", "*.txt"]))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise StartError(
            f"{where}: there is no such folder, and the hub does not give a repository of that name: "
            f"{_first_line(error)}{_hint(Path(path))}"
        ) from error
    _check_folder(where, folder, variant, kind, weights=False)
    return folder


def _hint(location: Path) -> str:
    """The end of a sentence about a path that does not exist, from the folders, or files of its kind, beside it."""
    kind = location.suffix if location.suffix == ".safetensors" else None
    try:
        there = location.parent.iterdir()
        beside = sorted(one.name for one in there if (one.is_dir() if kind is None else one.suffix == kind))
    except OSError:
        return ""
    near = nearest(location.name, beside)
    if near:
        return f". Did you mean {location.parent / near[0]}?"
    return f"; {location.parent} holds {', '.join(beside[:5])}" if beside and len(location.parts) > 1 else ""


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
