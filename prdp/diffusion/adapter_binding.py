"""LoRAs put beside the layers of a network by diffusers' own loaders, and what these make of a file."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prdp.diffusion.adapter_names import UNREADABLE, plain_layer
from prdp.support.errors import StartError

if TYPE_CHECKING:
    import torch

    from prdp.diffusion.adapter_files import Fitting


def load_into(
    pipeline: Any,
    component: str,
    network: Any,
    state: Mapping[str, torch.Tensor],
    name: str,
    alphas: Mapping[str, float] | None,
    metadata: Any,
) -> None:
    """Put a LoRA beside the layers of a network by the loader of its pipeline's class.

    Args:
        state, metadata: of `lora_state_dict`.
        name: of the adapter.
        alphas: kohya's, for loaders that take them; of others they are in the factors.
    """
    loader = getattr(pipeline, f"load_lora_into_{component}")
    taken = "network_alphas" in inspect.signature(loader).parameters
    loader(
        dict(state),
        **({"network_alphas": alphas or None} if taken else {}),
        **{component: network},
        adapter_name=name,
        metadata=metadata,
        low_cpu_mem_usage=True,
    )


def bound_scales(found: Fitting, empty: Any, pipeline: Any, component: str) -> dict[str, float]:
    """Layer -> the scale that the file tells, or diffusers gives, when diffusers has bound all factors.

    Args:
        found: what stands in the file.
        empty: the network, of zeros; it has the adapter afterwards.
        pipeline, component: see `read_adapter`.

    Raises:
        StartError: diffusers makes something else of the file; names what.
    """
    from prdp.diffusion.lora_file import lora_matrices

    where = found.where
    try:
        with warnings.catch_warnings():
            # peft warns of layers without matrices; all are compared below.
            warnings.simplefilter("ignore", RuntimeWarning)
            load_into(pipeline, component, empty, found.state, "read", found.alphas, found.metadata)
    except UNREADABLE as error:
        raise StartError(f"{where}: diffusers cannot load it: {error}") from error
    bound, scales = lora_matrices(empty, "read"), {}
    # Of these diffusers takes one for all layers of attention.
    alphas = {plain_layer(name.removesuffix(".alpha")): alpha for name, alpha in found.alphas.items()}
    for name, (down, up) in found.factors.items():
        for part, value in (("lora_A", down), ("lora_B", up)):
            matrix = bound.get(f"{name}.{part}")
            if matrix is None or matrix[0].device.type == "meta" or not matrix[0].equal(value):
                raise StartError(f"{where}: diffusers does not bind {name}.{part}")
        alpha = alphas.get(f"{component}.{name}")
        scales[name] = float(bound[f"{name}.lora_A"][1]) if alpha is None else alpha / int(down.shape[0])
    if bound.keys() - {f"{name}.{part}" for name in scales for part in ("lora_A", "lora_B")}:
        raise StartError(f"{where}: diffusers puts adapters on layers that the file does not hold")
    return scales
