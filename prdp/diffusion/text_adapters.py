"""Text encoders that learn beside their network: both as one module, and prompts that are token ids until the pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

GAIN = "gain"
"""Field [B, 1] by which what is read is multiplied: 1, and 0 for an empty prompt that a family takes as zeros."""


class NetworkWithEncoders(torch.nn.Module):
    """A network and its text encoders; tensors have the name of their component before their own.

    Args:
        component: of the network, unet or transformer.
        network: of diffusers.
        encoders: component -> text encoder of transformers.
    """

    def __init__(self, component: str, network: torch.nn.Module, encoders: Mapping[str, torch.nn.Module]) -> None:
        super().__init__()
        self._component, self._encoders = component, tuple(encoders)
        for name, part in {component: network, **encoders}.items():
            self.add_module(name, part)

    @property
    def network(self) -> Any:
        """Without the encoders."""
        return self.get_submodule(self._component)

    @property
    def encoders(self) -> dict[str, Any]:
        """Component -> text encoder."""
        return {name: self.get_submodule(name) for name in self._encoders}

    @property
    def parts(self) -> list[Any]:
        """The network, then its encoders."""
        return [self.network, *self.encoders.values()]

    @property
    def peft_config(self) -> dict[str, Any]:
        """Of the network; its encoders have adapters of the same names."""
        return getattr(self.network, "peft_config", {})


def network_in(module: Any) -> Any:
    """The network of a module that may have encoders beside it."""
    return module.network if isinstance(module, NetworkWithEncoders) else module


def parts_in(module: Any) -> list[Any]:
    """The network, and text encoders that learn with it."""
    return module.parts if isinstance(module, NetworkWithEncoders) else [module]


def distinct_prompts(
    fields: Mapping[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Fields of whole numbers, [B, ...] each, without repeated rows; and int64 [B], where each row is among them.

    The images of a prompt, and the branches without one, are read once.
    """
    names = list(fields)
    widths = [fields[name].shape[1] for name in names]
    rows, places = torch.unique(torch.cat([fields[name] for name in names], 1), dim=0, return_inverse=True)
    return dict(zip(names, rows.split(widths, 1), strict=True)), places
