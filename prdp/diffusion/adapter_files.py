"""LoRA adapters in files of diffusers, PEFT and kohya: every tensor belongs to a layer of the network or of a text
encoder, or the file is refused by its name and the tensor's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prdp.diffusion.adapter_binding import bound_scales
from prdp.diffusion.adapter_names import converted, plain_layer
from prdp.diffusion.adapter_tensors import TEXT, adapter_file, told_scale
from prdp.diffusion.clip_layers import text_path
from prdp.support.errors import StartError

if TYPE_CHECKING:
    import torch

    from prdp.config import ModelConfig


@dataclass(frozen=True)
class AdaptedLayer:
    """The factors of one layer, float: its output grows by scale * up(down(x)).

    Attributes:
        down: [rank, in], of convolutions [rank, in, kernel, kernel].
        up: [out, rank], of convolutions [out, rank, 1, 1].
        scale: alpha / rank.
    """

    down: torch.Tensor
    up: torch.Tensor
    scale: float

    @property
    def rank(self) -> int:
        """Inner dimension."""
        return int(self.down.shape[0])

    @property
    def alpha(self) -> float:
        """By which, divided by the rank, the output is scaled."""
        return self.scale * self.rank


@dataclass(frozen=True)
class Adapter:
    """A LoRA of one network, and perhaps of its text encoders.

    Attributes:
        source: its file.
        layers: path of the layer in the network -> its factors; none where text encoders alone are adapted.
        weight: by which its output is scaled beside alpha / rank.
        text: component -> path of the layer in that text encoder -> its factors.
    """

    source: Path
    layers: Mapping[str, AdaptedLayer]
    weight: float = 1.0
    text: Mapping[str, Mapping[str, AdaptedLayer]] = field(default_factory=dict)

    def of_text(self, component: str) -> Adapter:
        """The part of a text encoder, as if this were its network."""
        return replace(self, layers=self.text[component], text={})


def model_adapters(model: ModelConfig) -> list[tuple[str, float]]:
    """Path and weight of each of `model.adapters`."""
    weights = model.adapter_weights or [1.0] * len(model.adapters)
    return list(zip(model.adapters, weights, strict=True))


def read_adapter(
    key: str,
    path: str,
    network: Any,
    pipeline: Any,
    component: str,
    weight: float = 1.0,
    encoders: Mapping[str, Any] | None = None,
) -> Adapter:
    """Read a LoRA and check that it fits a network; its scales are those that the file tells, or diffusers gives.

    Args:
        key: of the configuration, for messages: model.adapters or learner.init_adapter.
        path: a file or a folder, see `adapter_file`.
        network: the diffusers model, or one of the same configuration on the meta device; not changed.
        pipeline: class of the diffusers pipeline, whose conversion of names is used.
        component: that the network is in it, unet or transformer.
        weight: of the adapter.
        encoders: component -> text encoder, likewise; those that the file may adapt. None leaves out what it has for
            text encoders.

    Raises:
        StartError: the file cannot be read, or a tensor belongs to no layer of the network or of an encoder; names file
            and tensor.
    """
    from prdp.diffusion.lora_file import network_of_zeros

    empty = network_of_zeros(network)
    found = _fitting(key, path, empty, network, pipeline, component, encoders)
    scales = bound_scales(found, empty, pipeline, component) if found.factors else {}
    layers = {name: AdaptedLayer(*found.factors[name], scale) for name, scale in scales.items()}
    return Adapter(found.file, layers, weight, found.text)


def check_adapter(
    key: str, path: str, network: Any, pipeline: Any, component: str, encoders: Mapping[str, Any] | None = None
) -> None:
    """Refuse a LoRA whose names, shapes or ranks do not fit a network; see `read_adapter`, whose binding by diffusers
    is left out here.

    Raises:
        StartError: likewise.
    """
    _fitting(key, path, network, network, pipeline, component, encoders)


@dataclass(frozen=True)
class Fitting:
    """What stands in a file, all of which fits; tensors are mapped from it.

    Attributes:
        file, where: of it; the second begins messages.
        state: tensors of the network, as diffusers' loader takes them.
        factors: layer -> its two factors.
        text: as `Adapter.text`.
        alphas, metadata: see `converted`.
    """

    file: Path
    where: str
    state: Mapping[str, torch.Tensor]
    factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    text: Mapping[str, Mapping[str, AdaptedLayer]]
    alphas: Mapping[str, float]
    metadata: dict[str, Any] | None


def _fitting(
    key: str,
    path: str,
    network: torch.nn.Module,
    configured: Any,
    pipeline: Any,
    component: str,
    encoders: Mapping[str, Any] | None,
) -> Fitting:
    """What stands in a file; see `read_adapter`.

    Args:
        network: without adapters.
        configured: the same, with its configuration.
    """
    file = adapter_file(key, path)
    where = f"{key}: {file}"
    state, origin, alphas, metadata = converted(where, file, pipeline, component, configured)
    text_state = {name: value for name, value in state.items() if name.startswith(TEXT)}
    state = {name: value for name, value in state.items() if name not in text_state}
    text = {} if encoders is None else _text(where, text_state, origin, alphas, metadata, encoders, component)
    alphas = {name: alpha for name, alpha in alphas.items() if not name.startswith(TEXT)}
    factors = _factors(where, network, state, origin, component)
    if not factors and not text_state:
        raise StartError(f"{where}: holds no factor of a LoRA of the {component}")
    settings = {
        name.removeprefix(f"{component}."): value
        for name, value in (metadata or {}).items()
        if name.startswith(f"{component}.")
    }
    for layer, (down, _) in factors.items() if settings else ():
        told_scale(f"{where}: {component}.{layer}", settings, layer, int(down.shape[0]))
    return Fitting(file, where, state, factors, text, alphas, metadata)


def _text(
    where: str,
    state: Mapping[str, torch.Tensor],
    origin: Mapping[str, str],
    alphas: Mapping[str, float],
    metadata: Mapping[str, Any] | None,
    encoders: Mapping[str, Any],
    network: str,
) -> dict[str, dict[str, AdaptedLayer]]:
    """Component -> layer -> factors, scaled as the file says: by alphas, by settings, or by 1."""
    found: dict[str, dict[str, AdaptedLayer]] = {}
    parts: dict[str, dict[str, torch.Tensor]] = {}
    if state:
        encoders = {name: _without_numbers(encoder) for name, encoder in encoders.items()}
    for name, value in state.items():
        component, _, rest = name.partition(".")
        if component not in encoders:
            told = f"{where}: {origin.get(name, name)}"
            others = [*encoders, network]
            raise StartError(f"{told}: adapters of {component} are not computed, those of {' and '.join(others)} are")
        parts.setdefault(component, {})[f"{component}.{text_path(encoders[component], rest)}"] = value
    origin = {_without_model(name, encoders): of for name, of in origin.items()}
    alphas = {_without_model(plain_layer(name.removesuffix(".alpha")), encoders): one for name, one in alphas.items()}
    for component, tensors in parts.items():
        given = {key.removeprefix(f"{component}."): value for key, value in (metadata or {}).items()}
        found[component] = {}
        for layer, (down, up) in _factors(where, encoders[component], tensors, origin, component).items():
            rank, scale = int(down.shape[0]), 1.0
            if (alpha := alphas.get(f"{component}.{layer}")) is not None:
                scale = alpha / rank
            elif any(key.startswith(f"{component}.") for key in metadata or ()):
                scale = told_scale(f"{where}: {component}.{layer}", given, layer, rank)
            found[component][layer] = AdaptedLayer(down, up, scale)
    return found


def _without_numbers(encoder: Any) -> Any:
    """A text encoder of the same layers on the meta device, without adapters."""
    import torch

    with torch.device("meta"):
        return type(encoder)(encoder.config)


def _without_model(name: str, encoders: Mapping[str, Any]) -> str:
    """A name of a text encoder's tensor as its encoder has it; any other as it is."""
    component, _, rest = name.partition(".")
    return f"{component}.{text_path(encoders[component], rest)}" if component in encoders else name


def _factors(
    where: str, network: torch.nn.Module, state: Mapping[str, torch.Tensor], origin: Mapping[str, str], component: str
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Layer -> its two factors, all of whose shapes fit the network."""
    import torch

    from prdp.diffusion.lora_targets import ADAPTED, weight_shape

    modules, found = dict(network.named_modules()), dict[str, dict[str, torch.Tensor]]()
    for name, value in state.items():
        told = f"{where}: {origin.get(name, name)}"
        match = re.fullmatch(rf"{component}\.(.+)\.lora_([AB])\.weight", name)
        if match is None:
            other = name.partition(".")[0]
            known = other in ("unet", "transformer") and other != component
            of = f"; it is of a {other}, which other families have" if known else ""
            raise StartError(f"{told}: is no factor of a LoRA of the {component}{of}")
        layer, part = match.groups()
        if not isinstance(modules.get(layer), ADAPTED):
            raise StartError(
                f"{told}: {type(network).__name__} has no linear layer or convolution '{layer}'; the file is of "
                "another model"
            )
        if not value.is_floating_point() or not torch.isfinite(value).all():
            raise StartError(f"{told}: must hold finite numbers")
        found.setdefault(layer, {})[part] = value
    for layer, parts in found.items():
        if len(parts) != 2:
            (only,) = parts
            missing = "up (lora_B)" if only == "A" else "down (lora_A)"
            raise StartError(
                f"{where}: {origin[f'{component}.{layer}.lora_{only}.weight']}: its other factor, {missing}, is missing"
            )
        module: Any = modules[layer]
        rank, outside = int(parts["A"].shape[0]), weight_shape(module)
        inside = (1,) * (len(outside) - 2)
        for part, expected in (("A", (rank, *outside[1:])), ("B", (outside[0], rank, *inside))):
            shape = tuple(parts[part].shape)
            if shape != expected:
                name = origin[f"{component}.{layer}.lora_{part}.weight"]
                raise StartError(f"{where}: {name}: has shape {list(shape)}, expected {list(expected)}")
    return {layer: (parts["A"], parts["B"]) for layer, parts in found.items()}
