"""Several LoRA adapters on one network, by name: put beside its layers, switched, or added to its weights."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from prdp.diffusion.adapter_files import Adapter, check_adapter, model_adapters, read_adapter
from prdp.diffusion.direct_layers import direct
from prdp.diffusion.text_adapters import NetworkWithEncoders, network_in
from prdp.support.errors import StartError

if TYPE_CHECKING:
    from prdp.config import LearnerConfig, ModelConfig

TRAINED = "default"
"""Name of the adapter that learns, in checkpoints too."""
START = "start"
"""Name of the frozen copy of what it started as."""


@dataclass(frozen=True)
class EmptyModel:
    """A model without weights, which files of LoRAs are checked against.

    Attributes:
        network: on the meta device.
        pipeline: class of the diffusers pipeline.
        component: that the network is in it, unet or transformer.
        encoders: component -> text encoder that takes adapters, on the meta device.
    """

    network: Any
    pipeline: Any
    component: str
    encoders: Mapping[str, Any]

    def read(self, key: str, path: str, weight: float = 1.0) -> Adapter:
        """See `read_adapter`."""
        return read_adapter(key, path, self.network, self.pipeline, self.component, weight, self.encoders)

    def check(self, key: str, path: str) -> None:
        """See `check_adapter`. What is for text encoders is left out where none takes adapters: diffusers loads it."""
        check_adapter(key, path, self.network, self.pipeline, self.component, self.encoders or None)


def frozen_name(number: int) -> str:
    """Name of the adapter that stands at a place of `model.adapters`."""
    return f"frozen_{number}"


def put_adapter(network: Any, name: str, adapter: Adapter) -> None:
    """Put an adapter beside the layers of a diffusers model, and of text encoders with it, float32, without gradient.

    Which adapters are active afterwards `activate` decides.
    """
    for part, own in _parts(network, adapter):
        _put(part, name, own)


def _parts(network: Any, adapter: Adapter) -> list[tuple[Any, Adapter]]:
    """The network with its part of an adapter, and each text encoder that the adapter has a part for."""
    found = [(network_in(network), adapter)]
    if isinstance(network, NetworkWithEncoders):
        encoders = network.encoders.items()
        found += [(one, adapter.of_text(component)) for component, one in encoders if component in adapter.text]
    return [(part, own) for part, own in found if own.layers]


@contextmanager
def another_adapter() -> Iterator[None]:
    """Without peft's warning that a network gets one more adapter, which it is meant to here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`", UserWarning)
        yield


def _put(network: Any, name: str, adapter: Adapter) -> None:
    from peft import LoraConfig

    ranks = {layer: part.rank for layer, part in adapter.layers.items()}
    common = Counter(ranks.values()).most_common(1)[0][0]
    config = LoraConfig(
        r=common,
        lora_alpha=common,
        rank_pattern={f"^{re.escape(layer)}": rank for layer, rank in ranks.items() if rank != common},
        target_modules="|".join(map(re.escape, adapter.layers)),
    )
    with torch.random.fork_rng(devices=[]), another_adapter():
        network.add_adapter(config, adapter_name=name)
    direct(network)
    _fill(network, name, adapter)
    for layer, part in adapter.layers.items():
        network.get_submodule(layer).scaling[name] = adapter.weight * part.scale


@torch.no_grad()
def fill_adapter(network: Any, name: str, adapter: Adapter) -> None:
    """Write the factors of a file into an adapter of the same layers and ranks; its tensors are float32 then."""
    for part, own in _parts(network, adapter):
        _fill(part, name, own)


@torch.no_grad()
def _fill(network: Any, name: str, adapter: Adapter) -> None:
    for layer, part in adapter.layers.items():
        module = network.get_submodule(layer)
        for factors, value in ((module.lora_A, part.down), (module.lora_B, part.up)):
            weight = factors[name].weight
            weight.data = value.to(weight.device, torch.float32, copy=True)


def activate(network: torch.nn.Module, names: Sequence[str], learning: Sequence[str] = ()) -> None:
    """Let exactly the named adapters take part in the forward pass, in this order.

    Args:
        names: at least one.
        learning: names of the parameters that have a gradient; those of other adapters have none.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    chosen = set(learning)
    for module in network.modules():
        if isinstance(module, BaseTunerLayer):
            if module.disable_adapters:
                module.enable_adapters(True)
            module.set_adapter(list(names))
    # peft takes an adapter that is active for one that learns.
    for name, value in network.named_parameters():
        if ".lora_" in name:
            value.requires_grad_(name in chosen)


def adapted_layers(network: torch.nn.Module) -> list[Any]:
    """The layers that have adapters."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in network.modules() if isinstance(module, BaseTunerLayer)]


@contextmanager
def switched(layers: Sequence[Any], names: Sequence[str]) -> Iterator[None]:
    """Let exactly the named adapters take part in the forward pass, for the time of the context.

    By the two flags that a layer reads in its forward pass. peft's own switch walks the network and sets the gradient
    flag of every tensor besides, which takes longer than a pass of a small network; here these flags stay.

    Args:
        layers: of `adapted_layers`.
        names: may be none.
    """
    before = [(layer._disable_adapters, layer._active_adapter) for layer in layers]
    for layer in layers:
        layer._disable_adapters = not names
        if names:
            layer._active_adapter = list(names)
    try:
        yield
    finally:
        for layer, flags in zip(layers, before, strict=True):
            layer._disable_adapters, layer._active_adapter = flags


@torch.no_grad()
def fuse(network: torch.nn.Module, adapter: Adapter) -> None:
    """Add an adapter to the weights of its layers, which are float32 from here on so that nothing is rounded away."""
    for layer, part in adapter.layers.items():
        weight: Any = network.get_submodule(layer).weight
        up, down = (value.to(weight.device, torch.float32).flatten(1) for value in (part.up, part.down))
        weight.data = weight.data.float() + adapter.weight * part.scale * (up @ down).view(weight.shape)


@torch.no_grad()
def fixed_tensors(network: torch.nn.Module, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """The network's tensors by name, with the named adapters added in float32 to the weights of their layers."""
    from peft.tuners.lora import LoraLayer

    found = {
        name: value.detach()
        for name, value in network.named_parameters()
        if ".lora_" not in name or name.split(".")[-2] not in names
    }
    for path, module in network.named_modules():
        for name in names:
            if isinstance(module, LoraLayer) and name in module.lora_A:
                key = f"{path}.base_layer.weight"
                up, down = (part[name].weight.float().flatten(1) for part in (module.lora_B, module.lora_A))
                found[key] = found[key].float() + module.scaling[name] * (up @ down).view(found[key].shape)
    return found


def start_problems(
    start: Adapter, network: torch.nn.Module, learner: LearnerConfig, encoders: Mapping[str, Any] | None = None
) -> list[str]:
    """Why the adapter that learns cannot start as a file: its rank, alpha and layers have to be the configuration's.

    Args:
        start: of learner.init_adapter.
        network: without adapters; may be on the meta device.
        learner: with the keys that describe the adapter, so that a checkpoint can be read without the file.
        encoders: component -> text encoder, likewise. One that the file has no part for starts anew.
    """
    where = f"learner.init_adapter: {start.source}"
    if start.text and not learner.text_encoders:
        return [
            f"{where}: adapts {' and '.join(start.text)} too: set learner.text_encoders=true, or take it frozen by "
            "model.adapters"
        ]
    if not start.layers:
        return [f"{where}: adapts {' and '.join(start.text)} alone: take it frozen by model.adapters"]
    parts = [start.layers, *start.text.values()]
    ranks, alphas = ({getattr(one, key) for layers in parts for one in layers.values()} for key in ("rank", "alpha"))
    if len(ranks) > 1 or max(alphas) - min(alphas) > 1e-6 * max(map(abs, alphas)):
        return [
            f"{where}: has several ranks ({_some(ranks)}) or alphas ({_some(alphas)}); one that goes on learning has "
            "one of each. Start from it frozen by model.adapters instead"
        ]
    rank, alpha = ranks.pop(), alphas.pop()
    problems = []
    if rank != learner.lora_rank:
        problems.append(f"{where}: has rank {rank}: learner.lora_rank={learner.lora_rank} must be the same; set {rank}")
    if abs(alpha - learner.lora_alpha) > 1e-6 * abs(alpha):
        problems.append(
            f"{where}: has alpha {alpha:g}: learner.lora_alpha={learner.lora_alpha:g} must be the same; set {alpha:g}"
        )
    key = "learner.lora_targets"
    problems += _target_problems(where, start.layers, network, key, learner.lora_targets)
    for component, layers in start.text.items():
        encoder, key = (encoders or {})[component], "learner.text_encoder_targets"
        problems += _target_problems(f"{where}: {component}", layers, encoder, key, learner.text_encoder_targets)
    return problems


def _target_problems(
    where: str, layers: Mapping[str, Any], network: torch.nn.Module, key: str, named: Sequence[str]
) -> list[str]:
    targets = tuple(named)
    chosen = {
        name
        for name, _ in network.named_modules()
        if any(name == target or name.endswith(f".{target}") for target in targets)
    }
    if chosen == layers.keys():
        return []
    fits = endings(layers.keys(), [name for name, _ in network.named_modules()])
    return [
        f"{where}: adapts {len(layers)} layers, and {key}={list(targets)} names {len(chosen)} "
        f"(first difference: {min(chosen ^ layers.keys())}): they must be the same; set {key}=[{','.join(fits)}]"
    ]


def check_adapters(model: ModelConfig, empty: EmptyModel) -> None:
    """Refuse `model.adapters` that do not fit; see `read_adapter`.

    Raises:
        StartError: all that is wrong, a line each.
    """
    problems = []
    for path, weight in model_adapters(model):
        try:
            empty.read("model.adapters", path, weight)
        except StartError as error:
            problems.append(str(error))
    if problems:
        raise StartError("\n".join(problems))


def init_adapter_problems(learner: LearnerConfig, empty: EmptyModel) -> list[str]:
    """What is wrong with `learner.init_adapter`; see `read_adapter` and `start_problems`."""
    assert learner.init_adapter is not None
    try:
        start = empty.read("learner.init_adapter", learner.init_adapter)
    except StartError as error:
        return [str(error)]
    return start_problems(start, empty.network, learner, empty.encoders)


def endings(layers: Sequence[str] | Any, modules: Sequence[str]) -> list[str]:
    """Ends of names that match exactly some layers among a network's modules, as short as can be."""
    wanted, found = set(layers), set[str]()
    for layer in sorted(wanted):
        if any(layer == end or layer.endswith(f".{end}") for end in found):
            continue
        parts = layer.split(".")
        for length in range(1, len(parts) + 1):
            end = ".".join(parts[-length:])
            if all(name in wanted for name in modules if name == end or name.endswith(f".{end}")):
                found.add(end)
                break
    return sorted(found)


def _some(values: set[Any]) -> str:
    return ", ".join(f"{value:g}" for value in sorted(values)[:4])
