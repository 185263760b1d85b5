"""Whether a pipeline's components are ones whose images are computed exactly as diffusers' own pipeline does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prdp.diffusion.model_components import (
    UNFIT,
    component_config,
    loading_problems,
    tokenizer_problems,
    vae_problems,
    weight_problems,
)
from prdp.diffusion.model_folder import absent_parts, read_component, weight_files
from prdp.diffusion.pipeline_formats import STABLE_DIFFUSION, PipelineFormat
from prdp.diffusion.single_file import file_problems
from prdp.diffusion.transformer_components import transformer_problems
from prdp.diffusion.unet_components import unet_problems
from prdp.support.errors import StartError

if TYPE_CHECKING:
    import torch


def check_components(
    where: str,
    folder: Path,
    variant: str | None = None,
    kind: PipelineFormat = STABLE_DIFFUSION,
    file: Path | None = None,
) -> None:
    """Refuse a folder, whole according to `check_model`, whose components are not computed exactly.

    Args:
        where: put before each problem, such as 'model.path=/models/sd'.
        folder, variant, kind: of the pipeline.
        file: with its weights, where the folder has none.

    Raises:
        StartError: all problems, a line each.
    """
    problems = component_problems(folder, variant, kind)
    if file is not None and not problems:
        problems = file_problems(file, folder, kind)
    if problems:
        raise StartError("\n".join(f"{where}: {problem}" for problem in problems))


def component_problems(
    folder: Path, variant: str | None = None, kind: PipelineFormat = STABLE_DIFFUSION
) -> list[str]:
    """What of a pipeline's folder is not computed exactly: the file, the key, its value and what is expected.

    Reads configurations and the headers of weights, where these are there.
    """
    from prdp.diffusion.libraries import quiet

    quiet()
    if loaded := loading_problems(folder, kind):
        return loaded
    absent = absent_parts(folder, kind)
    network = component_config(folder, kind.network, kind.components[kind.network])
    vae = component_config(folder, "vae", "AutoencoderKL")
    texts: dict[str, Mapping[str, Any]] = {}
    for name in kind.text_encoders:
        try:
            texts |= {} if name in absent else {name: _text_config(folder, name, kind).to_dict()}
        except UNFIT as error:
            return [f"{folder / name}: transformers makes no {kind.components[name]} of it: {error}"]
    of_network = unet_problems if kind.network == "unet" else transformer_problems
    found = {"vae": vae_problems(vae, kind), **of_network(folder, network, vae, texts, kind)}
    for tokenizer, text in zip(kind.tokenizers, kind.text_encoders, strict=True):
        if text in texts:
            found[tokenizer] = tokenizer_problems(
                folder / tokenizer, texts[text], kind.tokenizers[tokenizer], kind.chat
            )
    if not any(found.values()):
        for name in kind.components.keys() - set(absent):
            try:
                empty = empty_part(folder, name, kind)
            except UNFIT as error:
                found[name] = [f"no network can be made of it: {type(error).__name__}: {error}"]
            else:
                found[name] = weight_problems(empty, weight_files(folder, name, variant))
    return [f"{folder / name}: {problem}" for name, each in found.items() for problem in each]


def empty_network(folder: Path, kind: PipelineFormat) -> torch.nn.Module:
    """The network that learns, on the meta device, from its configuration alone."""
    return _empty(folder, kind.network, kind)


def empty_part(folder: Path, name: str, kind: PipelineFormat) -> torch.nn.Module:
    """A component with weights, likewise."""
    return _empty_text_encoder(folder, name, kind) if name in kind.text_encoders else _empty(folder, name, kind)


def _empty(folder: Path, name: str, kind: PipelineFormat) -> torch.nn.Module:
    import diffusers
    import torch

    with torch.device("meta"):
        network: torch.nn.Module = getattr(diffusers, kind.components[name]).from_config(read_component(folder, name))
    return network


def _empty_text_encoder(folder: Path, name: str, kind: PipelineFormat) -> torch.nn.Module:
    import torch
    import transformers

    with torch.device("meta"):
        network: torch.nn.Module = getattr(transformers, kind.components[name])(_text_config(folder, name, kind))
    return network


def _text_config(folder: Path, name: str, kind: PipelineFormat) -> Any:
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    try:
        return getattr(transformers, kind.components[name]).config_class(**read_component(folder, name))
    except StrictDataclassError as error:  # which is none of Python's own kinds
        raise ValueError(" ".join(str(error).split())) from error
