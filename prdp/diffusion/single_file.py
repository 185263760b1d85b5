"""Checkpoints of Stable Diffusion in one .safetensors file, as most fine-tunes are shared, with a folder's settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prdp.diffusion.model_components import UNFIT
from prdp.diffusion.model_folder import PICKLED, SCHEDULER_FILE, check_safetensors, read_component
from prdp.diffusion.pipeline_formats import V_PREDICTION, ZERO_SNR, PipelineFormat
from prdp.support.errors import StartError

_FIRST = "model.diffusion_model.input_blocks.0.0.weight"
_OTHER_KINDS = {
    "control_model.": "a ControlNet, which is not computed",
    "lora_": "a LoRA, which model.adapters takes",
    "unet.": "a LoRA, which model.adapters takes",
    "encoder.": "a VAE alone",
}
"""How names of tensors begin -> what has them."""
_OTHER_PROCESS = ("edm_mean", "edm_vpred.sigma_max")
_TOLD = "modelspec.prediction_type"
_PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction"}
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
        raise ValueError(f"{file} lacks {_some(missing)}, which the configurations of {folder} ask for")
    if surplus := _surplus(file, pipeline):
        raise ValueError(
            f"{file} has {_some(surplus)}, which the network of the configurations of {folder} has not: they are of "
            "another architecture"
        )
    return pipeline


def _surplus(file: Path, pipeline: Any) -> list[str]:
    """Tensors of a file's UNet that diffusers would leave out, in silence."""
    from safetensors import safe_open

    from prdp.diffusion.original_names import NETWORK, unet_names

    with safe_open(file, framework="numpy") as content:
        there = {name for name in content.keys() if name.startswith(NETWORK)}  # noqa: SIM118
    return sorted(there - unet_names(pipeline.unet))


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{rest}"


def file_problems(file: Path, folder: Path, kind: PipelineFormat) -> list[str]:
    """Why a file and a folder make no pipeline; tensors are mapped from the disk, and few are read."""
    import torch

    if problems := content_problems(file, folder):
        return problems
    try:
        with torch.no_grad():
            pipeline_of_file(file, folder, kind, **kind.arguments)
    except ValueError as error:
        return [str(error)]
    return []


def content_problems(file: Path, folder: Path) -> list[str]:
    """A file of another kind, by its header; or that says of its network another process, or another prediction, than
    the folder's scheduler does.

    ComfyUI and trainers mark files so, by tensors without content (`comfy/supported_models.py`, `SDXL.model_type`) or
    in the metadata of the model specification, https://github.com/Stability-AI/ModelSpec.
    """
    from safetensors import safe_open

    with safe_open(file, framework="numpy") as content:
        names, told = set(content.keys()), (content.metadata() or {}).get(_TOLD)
        channels = content.get_slice(_FIRST).get_shape()[1] if _FIRST in names else None
    kind = next((kind for start, kind in _OTHER_KINDS.items() if any(name.startswith(start) for name in names)), None)
    if kind is not None and channels is None:
        return [f"{file}: is {kind}; must be a whole checkpoint"]
    expected = read_component(folder, "unet").get("in_channels", 4)
    if channels not in (None, expected):
        return [
            f"{file}: {_FIRST} takes {channels} channels: must be {expected}, as the configurations of {folder} say; "
            "networks that also take a masked image, a depth map or an image to change are not computed"
        ]
    layers = read_component(folder, "unet").get("layers_per_block", 2)
    if not isinstance(layers, int):
        return [
            f"{folder}/unet/config.json: layers_per_block={layers}: must be one number with {file}: diffusers reads "
            "single files of such UNets alone; take a folder in diffusers format"
        ]
    if other := sorted(names & set(_OTHER_PROCESS)):
        return [f"{file}: {other[0]}: is of a network of EDM's process, which is not computed"]
    scheduler, where = read_component(folder, "scheduler"), folder / "scheduler" / SCHEDULER_FILE
    found = scheduler.get("prediction_type", "epsilon")
    by_tensor = V_PREDICTION in names
    marked = f"the tensor {V_PREDICTION}" if by_tensor else f"{_TOLD}={told}"
    prediction = _PREDICTIONS.get("v" if by_tensor else str(told), found)
    problems = []
    if prediction != found:
        problems.append(
            f"{where}: prediction_type={found}: must be {prediction}, as {file} has {marked}; set model.config to a "
            "copy of the folder with that scheduler"
        )
    if ZERO_SNR in names and not scheduler.get("rescale_betas_zero_snr"):
        problems.append(
            f"{where}: rescale_betas_zero_snr={scheduler.get('rescale_betas_zero_snr')}: must be true, as {file} has "
            f"the tensor {ZERO_SNR}; set model.config to a copy of the folder with that scheduler"
        )
    return problems
