"""Checkpoints of Stable Diffusion in one .safetensors file, as most fine-tunes are shared, with a folder's settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prdp.diffusion.model_components import UNFIT
from prdp.diffusion.model_folder import PICKLED, check_safetensors
from prdp.diffusion.pipeline_formats import PipelineFormat
from prdp.support.errors import StartError

_SHOWN = 3
_WITHOUT_WEIGHTS = "Cannot copy out of meta tensor"
"""What torch says where diffusers moves a network that got no weights."""


def check_file(where: str, file: Path, kind: PipelineFormat) -> None:
    """Refuse a file that is pickled, not whole, or of a family whose checkpoints are read from folders alone.

    Raises:
        StartError: says what to do with it.
    """
    if file.suffix in PICKLED:
        raise StartError(
            f"{where}: is pickled and never read here. If you trust who made it, convert it, with a folder in "
            "diffusers format of a model of the same architecture: python -c \"from diffusers import "
            f"{kind.pipeline} as P; P.from_single_file('{file}', config='FOLDER')"
            f".save_pretrained('{file.with_suffix('')}')\""
        )
    if file.suffix != ".safetensors":
        raise StartError(f"{where}: is a file, must be a folder in diffusers format or a .safetensors file")
    if not kind.single_file:
        raise StartError(
            f"{where}: is a file, must be a folder in diffusers format: of {kind.words} no single files are read"
        )
    check_safetensors(where, file)


def pipeline_of_file(file: Path, folder: Path, kind: PipelineFormat, **options: Any) -> Any:
    """The diffusers pipeline of a checkpoint whose tensors have the names of the model's authors.

    Args:
        file: as kohya's trainers, ComfyUI and others write it.
        folder: in diffusers format, of the same architecture: its configurations, scheduler and tokenizers are taken.
        options: of `from_single_file`.

    Raises:
        ValueError: diffusers cannot load it, or it lacks tensors; names them.
    """
    import diffusers
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    try:
        pipeline = getattr(diffusers, kind.pipeline).from_single_file(
            str(file), config=str(folder), local_files_only=True, **options
        )
    except (*UNFIT, SingleFileComponentError) as error:
        first = str(error).strip().split("\n")[0]
        lacking = "it lacks weights of a network" if _WITHOUT_WEIGHTS in first else first
        raise ValueError(
            f"diffusers makes no {kind.pipeline} of {file} with the configurations of {folder}: {lacking}"
        ) from error
    missing = [
        f"{component}.{name}"
        for component in kind.components
        if (network := getattr(pipeline, component)) is not None
        for name, value in network.named_parameters()
        if value.device.type == "meta"
    ]
    if missing:
        rest = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise ValueError(
            f"{file} lacks {', '.join(missing[:_SHOWN])}{rest}, which the configurations of {folder} ask for"
        )
    return pipeline


def file_problems(file: Path, folder: Path, kind: PipelineFormat) -> list[str]:
    """Why a file and a folder make no pipeline; tensors are mapped from the disk, and few are read."""
    import torch

    try:
        with torch.no_grad():
            pipeline_of_file(file, folder, kind, **kind.arguments)
    except ValueError as error:
        return [str(error)]
    return []
