"""Pipelines of diffusers as the policies take them: whole or the network alone, in their precision, on their device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from prdp.config import PRECISIONS, ModelConfig
from prdp.diffusion.libraries import quiet
from prdp.diffusion.pipeline_formats import STABLE_DIFFUSION, PipelineFormat
from prdp.support.errors import StartError
from prdp.support.microbatches import MemoryShortError, first_words, out_of_memory

DTYPES = {name: getattr(torch, name) for name in PRECISIONS}


def load_pipeline(
    model: ModelConfig,
    kind: PipelineFormat = STABLE_DIFFUSION,
    *,
    only_network: bool = False,
    network: Any = None,
    keep: Sequence[str] = (),
) -> Any:
    """The diffusers pipeline of `model`, on its device and in its precision.

    The scheduler of one with a UNet is LCMScheduler where the folder names it, else the DDIM scheduler that samples it
    here, so that a folder saved from it says all of how it is sampled.

    Args:
        kind: of the folder.
        only_network: leave out text encoders, tokenizers and VAE.
        keep: components that are not left out.
        network: to be used instead of the folder's.

    Raises:
        ValueError: no such folder, files missing in it, or a component that is not computed exactly; names them.
        StartError: weights that are no finite numbers; names the first tensor.
    """
    from prdp.diffusion.effective_scheduler import effective_scheduler
    from prdp.diffusion.model_folder import absent_parts, check_model, fetch_model, read_component
    from prdp.diffusion.pipeline_checks import check_components
    from prdp.diffusion.single_file import pipeline_of_file

    where, file = f"model.path={model.path}", single_file(model)
    # What is refused is refused before a download of gigabytes.
    folder = check_model(model.path, model.variant, model.revision, kind, model.config)
    assert folder is not None, "the world of mixtures has no pipeline"
    if file is None:
        folder = fetch_model(model.path, model.variant, model.revision, kind)
        check_model(str(folder), model.variant, kind=kind)
    check_components(where, folder, model.variant, kind)
    others: dict[str, Any] = {**kind.arguments, **dict.fromkeys(absent_parts(folder, kind))}
    if only_network:
        kept = (kind.network, *keep)
        others |= dict.fromkeys(part for part in (*kind.components, *kind.tokenizers) if part not in kept)
    if network is not None:
        others[kind.network] = network
    if "safety_checker" in kind.arguments:
        others["requires_safety_checker"] = False
    if kind.network == "unet":
        others["scheduler"] = effective_scheduler(read_component(folder, "scheduler"), kind)
    others["dtype"] = DTYPES[model.dtype]
    try:
        if file is None:
            pipeline = pipeline_class(kind).from_pretrained(
                folder, **others, variant=model.variant, use_safetensors=True
            )
        else:
            pipeline = pipeline_of_file(file, folder, kind, **others)
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ImportError) as error:
        raise ValueError(f"{where}: cannot be loaded as a {kind.pipeline}: {error}") from error
    pipeline.set_progress_bar_config(disable=True)
    _check_numbers(where, {name: part for name, part in pipeline.components.items() if part is not network})
    if model.quantization is not None and network is None:
        from prdp.diffusion.quantization import quantize

        quantize(getattr(pipeline, kind.network), model.quantization, device_of(model))
    return placed(pipeline, model)


def _check_numbers(where: str, components: Mapping[str, Any]) -> None:
    """Smallest and largest of a tensor are not finite where any of it is not, and cost one read of it."""
    for component, part in components.items():
        for name, value in part.named_parameters() if isinstance(part, torch.nn.Module) else ():
            if value.numel() and not all(bool(one.isfinite()) for one in value.detach().aminmax()):
                count = value.numel() - int(value.detach().isfinite().sum())
                told = f"{count} of {value.numel()} numbers are not finite in {str(value.dtype).removeprefix('torch.')}"
                raise StartError(
                    f"{where}: {component}.{name}: {told}: the file is damaged, or has numbers that are too large for "
                    "this precision"
                )


def single_file(model: ModelConfig) -> Path | None:
    """The file with the weights, where `model.path` is one."""
    from prdp.diffusion.model_folder import is_single_file, model_location

    return Path(model_location(model.path)) if is_single_file(model.path) else None


def pipeline_class(kind: PipelineFormat) -> Any:
    """Of diffusers."""
    quiet()
    import diffusers

    return getattr(diffusers, kind.pipeline)


def device_of(model: ModelConfig) -> str:
    """Where `model.device` puts a model."""
    return model.device if model.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")


def placed(pipeline: Any, model: ModelConfig) -> Any:
    """The pipeline on its device; text encoders and the VAE stay on the host where `model` says so.

    Raises:
        MemoryShortError: the device has no memory for it.
    """
    device = device_of(model)
    for name, part in pipeline.components.items():
        waits = model.offload_vae if name == "vae" else model.offload_encoders and name.startswith("text_encoder")
        if isinstance(part, torch.nn.Module) and not waits:
            try:
                part.to(device)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                raise MemoryShortError(
                    f"model.device={device}: no memory is left there for the model's {name}: {first_words(error)}; "
                    "other processes may hold it. model.offload_encoders and model.offload_vae take less, and so do a "
                    "lower model.dtype and model.quantization; prdp validate plans the memory"
                ) from error
    return pipeline
