"""Mixture of LoRA: experts beside the layers of a frozen network, weighted for each image and step by gates that learn.

    h = W0 x + sum_i g_i (alpha_i / r_i) B_i A_i x,    g = softmax(U [mean over tokens of x, embedding of the time] + b)

U and b start at 0, where every expert counts 1 / M and the network is that with the experts' mean delta.

References:
    Guo et al., VersaT2I, arXiv:2403.18493, for the mixture; Wu et al., Mixture of LoRA experts, ICLR 2024, for gates by
    layer or block and the balance of their use. The time among the inputs is ours.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from prdp.diffusion.lora_targets import ADAPTED, weight_shape
from prdp.experts.lora_files import Expert
from prdp.support.errors import StartError

TIME_WIDTH = 32
"""Numbers of the embedding of the time."""
_BLOCK = re.compile(
    r"((?:.*\.)?(?:transformer_blocks|single_transformer_blocks|resnets|layers|noise_refiner|context_refiner)\.\d+)\."
)


class Gate(nn.Module):
    """The weights of M experts for each image: float32 [B, M], each row of which sums to 1.

    Args:
        width: of the tokens.
        experts: M.
    """

    def __init__(self, width: int, experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(experts, width + TIME_WIDTH))
        self.bias = nn.Parameter(torch.zeros(experts))

    def forward(self, token: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """Of the mean token [B, width] and times [B, TIME_WIDTH]."""
        features = torch.cat([token.float(), times.float()], 1)
        with torch.autocast(token.device.type, enabled=False):
            return F.linear(features, self.weight, self.bias).softmax(1)


class GatedLayer(nn.Module):
    """A linear layer or convolution with experts beside it; float32 factors that are cast to what comes in.

    Args:
        base: the layer, perhaps with adapters of its own.
        gates: what gives the weights of the experts for an input of this layer.
        path: of the layer in its network.
        parts: (number of the expert, its factors), for those that adapt the layer.
    """

    def __init__(self, base: nn.Module, gates: _Gates, path: str, parts: Sequence[tuple[int, Any]]) -> None:
        super().__init__()
        self.base = base
        self._gates, self._path = [gates], path  # in a list, lest it is taken for a part of the layer
        self.down: torch.Tensor
        self.up: torch.Tensor
        self.columns: torch.Tensor
        ranks = [number for number, layer in parts for _ in range(layer.rank)]
        place: Any = base.weight.device
        frozen = {
            "down": torch.cat([layer.down.float() for _, layer in parts], 0),
            "up": torch.cat([layer.scale * layer.up.float() for _, layer in parts], 1),
            "columns": torch.tensor(ranks),
        }
        for name, value in frozen.items():
            self.register_buffer(name, value.to(place), persistent=False)

    @property
    def weight(self) -> Any:
        """Of the layer itself; diffusers asks for its dtype."""
        return self.base.weight

    @property
    def bias(self) -> Any:
        """Of the layer itself."""
        return self.base.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the layer gives, and what the experts add by their weights for each image."""
        weights = self._gates[0].of(self._path, mean_of_tokens(x, self.down.ndim == 4))[:, self.columns]
        output: torch.Tensor = self.base(x)
        down, up = self.down.to(x.dtype), self.up.to(x.dtype)
        if down.ndim == 2:
            inner = F.linear(x, down)
            shape = (len(weights), *(1 for _ in inner.shape[1:-1]), -1)
            return output + F.linear(inner * weights.view(shape).to(inner.dtype), up).to(output.dtype)
        plain: Any = getattr(self.base, "base_layer", self.base)
        inner = F.conv2d(x, down, None, plain.stride, plain.padding, plain.dilation)
        return output + F.conv2d(inner * weights[:, :, None, None].to(inner.dtype), up).to(output.dtype)


class _Gates:
    """Who asks which gate, and what the gates said in the forward pass under way."""

    def __init__(self, gates: Mapping[str, Gate], leaders: Mapping[str, str]) -> None:
        self.gates, self.leaders = gates, leaders
        self.times: torch.Tensor | None = None
        self.said: dict[str, torch.Tensor] = {}

    def begin(self, times: torch.Tensor) -> None:
        """A forward pass of the network, at times [B]."""
        from diffusers.models.embeddings import get_timestep_embedding

        self.times = get_timestep_embedding(times.float(), TIME_WIDTH, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.said = {}

    def of(self, layer: str, token: torch.Tensor) -> torch.Tensor:
        """Weights [B, M] for a layer whose input has this mean token [B, width]."""
        leader = self.leaders[layer]
        if leader == layer:
            if self.times is None or len(self.times) != len(token):
                at = 0 if self.times is None else len(self.times)
                raise RuntimeError(f"{layer} is given {len(token)} rows in a pass of {at} times: it takes no gate")
            self.said[layer] = self.gates[layer](token, self.times)
        if leader not in self.said:
            raise RuntimeError(f"{layer} is called before {leader}, whose gate it shares; take gate.share=layer")
        return self.said[leader]


class Mixture:
    """Experts and gates in a network, which they stay in.

    Args:
        network: a diffusers model that takes `timestep`; its layers are wrapped, and none of its weights learns.
        experts: of this network alone.
        share: layer: a gate for each adapted layer; block: for each block of the network, computed from the input of
            the first adapted layer in it.

    Attributes:
        parameters: name -> what learns: float32, nothing else has a gradient.

    Raises:
        StartError: an expert that does not fit; names it, the layer and the shapes.
    """

    def __init__(self, network: Any, experts: Sequence[Expert], share: str = "layer") -> None:
        component = "unet" if "UNet" in type(network).__name__ else "transformer"
        found = fitting_layers(experts, network, component)
        network.requires_grad_(False)
        self.names = [expert.name for expert in experts]
        self.leaders = _leaders([path for path, _ in network.named_modules() if path in found], share)
        widths = {path: int(parts[0][1].down.shape[1]) for path, parts in found.items()}
        gates = {path: Gate(widths[path], len(experts)) for path in dict.fromkeys(self.leaders.values())}
        self._gates = _Gates(gates, self.leaders)
        for path, parts in found.items():
            parent, _, name = path.rpartition(".")
            base = network.get_submodule(path)
            layer = GatedLayer(base, self._gates, path, parts)
            setattr(network.get_submodule(parent), name, layer)
            if path in gates:
                gates[path].to(layer.down.device)
        self.gates: Mapping[str, Gate] = gates
        self.parameters: dict[str, nn.Parameter] = {
            f"{path}.{name}": value for path, gate in gates.items() for name, value in gate.named_parameters()
        }
        signature = inspect.signature(network.forward)

        def before(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            arguments = signature.bind(*given, **named).arguments
            first = next(iter(arguments.values()))
            times = torch.as_tensor(arguments["timestep"], device=first.device).reshape(-1)
            self._gates.begin(times.expand(len(first)))

        network.register_forward_pre_hook(before, with_kwargs=True)

    def said(self) -> dict[str, torch.Tensor]:
        """Gate -> its weights in the last forward pass, [B, M]."""
        return dict(self._gates.said)

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Set all gates.

        Raises:
            ValueError: a tensor that is missing, unknown, of another shape or not finite; names it.
        """
        if odd := sorted(tensors.keys() ^ self.parameters.keys()):
            raise ValueError(f"gates: {odd[0]} is {'unknown' if odd[0] in tensors else 'missing'}")
        for name, value in self.parameters.items():
            if value.shape != tensors[name].shape:
                raise ValueError(f"gates: {name} has shape {list(tensors[name].shape)}, expected {list(value.shape)}")
            if not tensors[name].isfinite().all():
                raise ValueError(f"gates: {name} must hold finite numbers")
            value.data.copy_(tensors[name])


def mean_of_tokens(x: torch.Tensor, is_image: bool) -> torch.Tensor:
    """[B, width] of tokens [B, ..., width], or of an image [B, width, h, w]."""
    return x.flatten(2).mean(2) if is_image else x.reshape(len(x), -1, x.shape[-1]).mean(1)


def usage(said: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Mean weight of each expert over gates and images: [M], the sum is 1."""
    return torch.stack([weights.mean(0) for weights in said.values()]).mean(0)


def balance(said: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """-sum log q of the usage q: least, M log M, where all experts are used alike, and without gradient there."""
    return -usage(said).log().sum()


def entropy(said: Mapping[str, torch.Tensor]) -> float:
    """Mean entropy of the gates in nats, from 0 (one expert each) to log M (all alike)."""
    each = [-(weights * weights.clamp(min=1e-12).log()).sum(1).mean() for weights in said.values()]
    return float(torch.stack(each).detach().mean())


def _leaders(layers: Sequence[str], share: str) -> dict[str, str]:
    """Layer -> the layer whose gate it takes: itself, or the first of its block."""
    if share == "layer":
        return {layer: layer for layer in layers}
    first: dict[str, str] = {}
    return {layer: first.setdefault(_block(layer), layer) for layer in layers}


def _block(layer: str) -> str:
    match = _BLOCK.match(layer)
    return match[1] if match else layer


def fitting_layers(
    experts: Sequence[Expert], network: nn.Module, component: str
) -> dict[str, list[tuple[int, Any]]]:
    """Path in the network -> (number of the expert, factors).

    Args:
        network: may be on the meta device.

    Raises:
        StartError: experts that do not fit, a line each; names the file, the layer and the shapes.
    """
    modules, found = dict(network.named_modules()), dict[str, list[tuple[int, Any]]]()
    problems: dict[Path, str] = {}
    for number, expert in enumerate(experts):
        for name, layer in expert.layers.items():
            told = f"models: {expert.source}: layer {name}"
            of, _, path = name.partition(".")
            base: Any = modules.get(path)
            plain = getattr(base, "base_layer", base)
            if of != component or not isinstance(plain, ADAPTED):
                problems.setdefault(expert.source, f"{told}: the {component} that is to be gated has no such layer")
                continue
            shape = (int(layer.up.shape[0]), *layer.down.shape[1:])
            if weight_shape(plain) != shape or getattr(plain, "groups", 1) != 1:
                other = f"{told}: is for a layer of shape {list(shape)}, not {list(weight_shape(plain))}"
                problems.setdefault(expert.source, other)
            found.setdefault(path, []).append((number, layer))
    if problems:
        raise StartError("\n".join(problems.values()))
    return found
