"""Which layers of a network LoRA adapters can be put beside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from prdp.config import LearnerConfig

ADAPTED = (torch.nn.Linear, torch.nn.Conv2d)


def weight_shape(layer: torch.nn.Module) -> tuple[int, ...]:
    """Of a linear layer, which may keep its weight in fewer bits, or of a convolution."""
    if isinstance(layer, torch.nn.Linear):
        return layer.out_features, layer.in_features
    weight: Any = layer.weight
    return tuple(weight.shape)


def lora_target_problems(
    network: torch.nn.Module, targets: Sequence[str], key: str = "learner.lora_targets"
) -> list[str]:
    """Why peft cannot put adapters where `targets` name layers; a target names every module whose path ends in it.

    A network on the meta device will do.
    """
    modules = dict(network.named_modules())
    wrong = []
    for target in targets:
        matched = {name: part for name, part in modules.items() if name == target or name.endswith(f".{target}")}
        others = {type(part).__name__: name for name, part in matched.items() if not isinstance(part, ADAPTED)}
        if not matched:
            wrong.append(f"{key}: '{target}' matches no layer of {type(network).__name__}")
        elif others:
            kinds = ", ".join(f"{kind} ({name})" for kind, name in sorted(others.items()))
            wrong.append(f"{key}: '{target}' matches {kinds}, which takes no adapter")
    if wrong or not targets:
        wrong.append(f"{key} must name linear layers or convolutions: {', '.join(_endings(modules))}")
    return wrong


def optimizer_target_problems(learner: LearnerConfig, network: torch.nn.Module) -> list[str]:
    """Why an optimizer cannot step the adapters of layers: Muon's tensors are matrices."""
    if learner.optimizer != "muon":
        return []
    for name, part in network.named_modules():
        if isinstance(part, torch.nn.Conv2d) and any(name == t or name.endswith(f".{t}") for t in learner.lora_targets):
            return [
                f"learner.optimizer=muon: steps matrices alone, and learner.lora_targets names convolutions ({name})"
            ]
    return []


def _endings(modules: dict[str, torch.nn.Module]) -> list[str]:
    """How the paths of the layers that can be adapted end: 'to_q', 'to_out.0', 'ff.net.2'."""
    endings = set()
    for name, part in modules.items():
        if isinstance(part, ADAPTED):
            parts = name.split(".")
            start = next(index for index in reversed(range(len(parts))) if not parts[index].isdigit())
            endings.add(".".join(parts[start:]))
    return sorted(endings)
