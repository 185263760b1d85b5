"""Experts to one adapter, layer by layer: at no time is more than one layer's delta in memory."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from prdp.diffusion.adapter_files import AdaptedLayer
from prdp.experts.lora_files import Expert
from prdp.experts.merging import MergedLayer, Part
from prdp.experts.methods import Method
from prdp.support.errors import ConfigError, StartError


@dataclass(frozen=True)
class Merged:
    """What experts were merged to.

    Attributes:
        experts: in order, with the weights that they had, which sum to 1.
        weights: see above.
        scale: of the whole.
        method: how.
        layers: name with its component -> factors and what they lost.
    """

    experts: Sequence[Expert]
    weights: Sequence[float]
    scale: float
    method: Method
    layers: Mapping[str, MergedLayer]

    @property
    def error(self) -> float:
        """Relative, of all layers' deltas as one vector."""
        size = math.hypot(*(one.size for one in self.layers.values()))
        return math.hypot(*(one.lost for one in self.layers.values())) / size if size > 0 else 0.0

    def record(self) -> dict[str, Any]:
        """What went in and how, for the header of a file and for people."""
        return {
            "method": self.method.name,
            **dataclasses.asdict(self.method),
            "scale": self.scale,
            "relative_error": self.error,
            "sources": [
                {"name": expert.name, "file": expert.source.name, "sha256": expert.digest, "weight": weight}
                for expert, weight in zip(self.experts, self.weights, strict=True)
            ],
        }


def normalised(weights: Sequence[float], names: Sequence[str]) -> list[float]:
    """Weights that sum to 1, one a name; equal ones where none are given.

    Raises:
        ConfigError: another number of weights than names, or one that is nothing beside the others.
    """
    if weights and len(weights) != len(names):
        raise ConfigError(
            f"weights={list(weights)}: has {len(weights)} numbers: must be one for each of the {len(names)} models "
            f"({', '.join(names)}), or none"
        )
    given = list(weights) or [1.0] * len(names)
    largest = max(given)  # the sum of numbers near the largest there is has none
    total = math.fsum(one / largest for one in given)
    found = [one / largest / total for one in given]
    if nothing := next((name for name, one in zip(names, found, strict=True) if one == 0), None):
        raise ConfigError(f"weights={given}: that of {nothing} comes to 0 beside {largest:g}; leave the model out")
    return found


def absent_layers(experts: Sequence[Expert]) -> dict[tuple[str, ...], list[str]]:
    """Names of experts -> the layers that all of these lack and another one has; their delta counts as zero there."""
    found: dict[tuple[str, ...], list[str]] = {}
    for layer in dict.fromkeys(name for expert in experts for name in expert.layers):
        if lacking := tuple(expert.name for expert in experts if layer not in expert.layers):
            found.setdefault(lacking, []).append(layer)
    return found


def check_same_base(experts: Sequence[Expert]) -> None:
    """Refuse experts whose layers have other shapes, which are of different bases.

    Raises:
        StartError: for each expert that differs from one before, the first such layer, the files and their shapes.
    """
    problems: dict[str, str] = {}
    first: dict[str, tuple[Expert, tuple[list[int], int]]] = {}
    components: dict[str, Expert] = {}
    for expert in experts:
        for name, layer in expert.layers.items():
            shape = (list(layer.down.shape[1:]), int(layer.up.shape[0]))
            other, expected = first.setdefault(name, (expert, shape))
            if shape != expected:
                told = (
                    f"models: {expert.source}: layer {name} takes {shape[0]} and gives {shape[1]}; in {other.source} "
                    f"it takes {expected[0]} and gives {expected[1]}: they are of different bases"
                )
                problems.setdefault(expert.name, told)
            component = name.partition(".")[0]
            if component in ("unet", "transformer"):
                components.setdefault(component, expert)
    if problems:
        raise StartError("\n".join(problems.values()))
    if len(components) > 1:
        told = " and ".join(f"{expert.source} is of a {component}" for component, expert in components.items())
        raise StartError(f"models: {told}: they are of different bases")


def merge_experts(
    experts: Sequence[Expert],
    weights: Sequence[float],
    scale: float,
    method: Method,
    say: Callable[[str], None] = lambda line: None,
) -> Merged:
    """Merge layer by layer; a layer that an expert lacks counts as zero there.

    Args:
        experts: of one base, see `check_same_base`.
        weights: one each, of which the sum is 1.
        scale: of the merged delta.
        say: is told of each layer that loses something.

    Raises:
        ConfigError: a layer is beyond float32; names it.
    """
    layers = {}
    for name in sorted({name for expert in experts for name in expert.layers}):
        parts = [
            Part(weight, expert.layers[name], _seed(getattr(method, "seed", 0), name, expert.digest))
            for expert, weight in zip(experts, weights, strict=True)
            if name in expert.layers
        ]
        beyond = f"scale={scale:g}: layer {name} has numbers beyond float32 then; must be smaller"
        try:
            merged = method.layer(parts, scale)
        except torch.linalg.LinAlgError as error:
            raise ConfigError(beyond) from error
        layer = AdaptedLayer(merged.layer.down.contiguous(), merged.layer.up.contiguous(), merged.layer.scale)
        if not (layer.down.isfinite().all() and layer.up.isfinite().all()):
            raise ConfigError(beyond)
        layers[name] = dataclasses.replace(merged, layer=layer)
        if not method.exact:
            say(f"{name}: rank {layer.rank}, relative error {merged.error:.2e}")
    return Merged(experts, weights, scale, method, layers)


def _seed(seed: int, layer: str, digest: str) -> int:
    """Of what is drawn for a layer of an expert, whatever its place among the experts."""
    return int.from_bytes(hashlib.sha256(f"{seed}|{layer}|{digest}".encode()).digest()[:7])
