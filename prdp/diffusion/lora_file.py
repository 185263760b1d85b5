"""LoRA weights as a file of diffusers: written so that every matrix binds, and read back to prove it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from prdp.diffusion.adapter_binding import load_into
from prdp.diffusion.adapter_files import read_adapter
from prdp.diffusion.adapter_names import lora_options
from prdp.diffusion.adapter_tensors import LORA_FILE
from prdp.diffusion.adapters import TRAINED
from prdp.diffusion.clip_layers import file_path

_ADAPTER = "exported"
"""Names the adapter that is read back."""


def save_lora(
    network: Any, folder: Path, pipeline: Any, component: str, encoders: Mapping[str, Any] | None = None
) -> None:
    """Write the adapter of a network that learns as `LORA_FILE`, for `load_lora_weights` of its pipeline.

    Args:
        pipeline: class of the diffusers pipeline.
        component: that the network is in it, unet or transformer.
        encoders: component -> text encoder that learns, too.

    Matrices keep peft's names (lora_A, lora_B): diffusers takes the scheme of the first name for that of all, and its
    own conversion renames those of attention alone.

    Raises:
        ValueError: what diffusers makes of the file is not what was learned; see `check_lora`.
    """
    from peft.utils import get_peft_model_state_dict

    layers = {
        f"{component}_lora_layers": get_peft_model_state_dict(network),
        f"{component}_lora_adapter_metadata": network.peft_config[TRAINED].to_dict(),
    }
    for name, encoder in (encoders or {}).items():
        matrices = lora_matrices(encoder, TRAINED)
        layers[f"{name}_lora_layers"] = {
            f"{file_path(encoder, matrix)}.weight": value for matrix, (value, _) in matrices.items()
        }
        layers[f"{name}_lora_adapter_metadata"] = encoder.peft_config[TRAINED].to_dict()
    pipeline.save_lora_weights(folder, **layers, weight_name=LORA_FILE, safe_serialization=True)
    check_lora(network, folder / LORA_FILE, pipeline, component)
    if encoders:
        _check_text(network, folder / LORA_FILE, pipeline, component, encoders)


def _check_text(network: Any, file: Path, pipeline: Any, component: str, encoders: Mapping[str, Any]) -> None:
    """Read the text encoders' part of a file as `model.adapters` is read, and compare it with what they learned."""
    found = read_adapter("weights", str(file), network, pipeline, component, encoders=encoders).text
    for name, encoder in encoders.items():
        read: dict[str, tuple[torch.Tensor, float]] = {}
        for layer, part in found.get(name, {}).items():
            read |= {f"{layer}.lora_A": (part.down, part.scale), f"{layer}.lora_B": (part.up, part.scale)}
        learned = lora_matrices(encoder, TRAINED)
        for matrix in read.keys() | learned.keys():
            one, other = read.get(matrix), learned.get(matrix)
            if one is None or other is None or one[1] != other[1] or not one[0].equal(other[0].to("cpu")):
                raise ValueError(f"{file}: {name}.{matrix} is not read back as it was learned")


def check_lora(network: Any, file: Path, pipeline: Any, component: str) -> None:
    """Load a LoRA file by diffusers into a network of zeros, and compare it with the adapters of `network`.

    Raises:
        ValueError: names a matrix that diffusers binds to no layer, or with another value or scale.
    """
    empty = network_of_zeros(network)
    options = lora_options(pipeline, network)
    found = pipeline.lora_state_dict(
        file.parent, weight_name=file.name, local_files_only=True, return_lora_metadata=True, **options
    )
    # With some pipelines the scales of layers come between the two.
    (state, *alphas), metadata = found[:-1], found[-1]
    with warnings.catch_warnings():
        # peft warns of layers without matrices; they are counted below.
        warnings.simplefilter("ignore", RuntimeWarning)
        load_into(pipeline, component, empty, state, _ADAPTER, alphas[0] if alphas else None, metadata)
    bound, learned = lora_matrices(empty, _ADAPTER), lora_matrices(network, TRAINED)
    lost = [name for name in learned if name not in bound or bound[name][0].device.type == "meta"]
    changed = [
        name
        for name in learned.keys() - lost
        if bound[name][1] != learned[name][1] or not torch.equal(bound[name][0], learned[name][0].to("cpu"))
    ]
    if lost or changed or bound.keys() - learned.keys():
        first = sorted(lost or changed or bound.keys() - learned.keys())[0]
        raise ValueError(
            f"{file}: of the {len(learned)} LoRA matrices that were learned diffusers binds "
            f"{len(learned) - len(lost)}, {len(changed)} of them with another value or scale, and "
            f"{len(bound.keys() - learned.keys())} that were not learned; first: {first}"
        )


def network_of_zeros(network: Any) -> Any:
    """A network of the same layers whose weights are one zero each, seen in all places: they need no memory."""
    with torch.device("meta"):
        empty = type(network).from_config(network.config)
    for module in empty.modules():
        for name, value in module.named_parameters(recurse=False):
            setattr(module, name, torch.nn.Parameter(torch.zeros(()).expand(value.shape), requires_grad=False))
    return empty


def lora_matrices(network: Any, adapter: str) -> dict[str, tuple[torch.Tensor, float]]:
    """Name without the adapter's -> matrix and the scale of its layer, alpha / rank."""
    found = {}
    for name, module in network.named_modules():
        for part in ("lora_A", "lora_B"):
            if adapter in getattr(module, part, {}):
                found[f"{name}.{part}"] = getattr(module, part)[adapter].weight.detach(), module.scaling[adapter]
    return found
