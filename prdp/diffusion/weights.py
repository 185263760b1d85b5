"""Which weights of a network learn: all of them, or LoRA adapters; and the frozen start beside them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from prdp.diffusion.adapters import (
    START,
    TRAINED,
    activate,
    adapted_layers,
    fill_adapter,
    fixed_tensors,
    frozen_name,
    fuse,
    put_adapter,
    switched,
)
from prdp.diffusion.direct_layers import direct
from prdp.diffusion.text_adapters import NetworkWithEncoders, network_in, parts_in
from prdp.types import Weights, tensors_checksum

if TYPE_CHECKING:
    from prdp.diffusion.adapter_files import Adapter


class TrainableWeights:
    """The learning tensors of a network, by name.

    The reference is the start. With LoRA it is the network without the adapter that learns, frozen adapters included;
    where that adapter started as a file, a frozen copy of it stands in its place. With full weights, to which frozen
    adapters are added beforehand, it is a frozen copy. Copies are made only where `keep_reference` asks for them.

    Args:
        network: a diffusers model (LoRA needs its `add_adapter`), or one with text encoders that learn, too.
        mode: 'lora', 'full', or 'frozen': nothing learns, for networks that are only sampled from. Their reference is
            the network without the adapters that are loaded into it later.
        rank, alpha, targets: of LoRA, as in peft's LoraConfig.
        text_targets: of text encoders.
        unread: beginnings of names of layers that nothing is read from; what adapters they get does not learn.
        adapters: frozen ones that the start consists of.
        start: what the adapter that learns, or one that is loaded later, started as; of the rank, alpha and targets.
        seed: of the adapters' random start.
        keep_reference: whether `reference()` will be called.
    """

    def __init__(
        self,
        network: Any,
        mode: str,
        *,
        rank: int = 16,
        alpha: float = 16.0,
        targets: list[str] | None = None,
        text_targets: Sequence[str] = (),
        unread: Sequence[str] = (),
        adapters: Sequence[Adapter] = (),
        start: Adapter | None = None,
        seed: int = 0,
        keep_reference: bool = True,
    ) -> None:
        self.network: Any = network
        self.mode = mode
        self._frozen: torch.nn.Module | None = None
        self._start = start
        self._at_start: list[str] = []
        self._active: list[str] = []
        self._layers: list[Any] | None = None
        network.requires_grad_(False)
        if mode == "lora":
            self._add_lora(rank, alpha, targets or [], text_targets, seed)
        elif mode == "full":
            for adapter in adapters:
                fuse(network, adapter)
            if keep_reference:
                self._frozen = copy.deepcopy(network)
            network.requires_grad_(True)
        elif mode != "frozen":
            raise ValueError(f"learner.mode is {mode!r}, expected lora or full")
        for name, value in network.named_parameters():
            value.requires_grad_(value.requires_grad and not name.startswith(tuple(unread)))
        self.parameters = {name: value for name, value in network.named_parameters() if value.requires_grad}
        if mode != "full":
            self._add_frozen(adapters, keep_reference)
        # Learning tensors are float32 whatever the network's precision, or small updates would round away.
        for value in self.parameters.values():
            value.data = value.data.float()

    def _add_lora(
        self, rank: int, alpha: float, targets: list[str], text_targets: Sequence[str], seed: int
    ) -> None:
        from peft import LoraConfig

        from prdp.diffusion.lora_targets import lora_target_problems

        # A target that names nothing would train fewer layers than asked for, in silence.
        parts = [(network_in(self.network), targets, "learner.lora_targets")]
        if isinstance(self.network, NetworkWithEncoders):
            key = "learner.text_encoder_targets"
            parts += [(one, list(text_targets), key) for one in self.network.encoders.values()]
        for part, names, key in parts:
            if problems := lora_target_problems(part, names, key):
                raise ValueError("\n".join(problems))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for part, names, _ in parts:
                settings = LoraConfig(r=rank, lora_alpha=alpha, target_modules=names, init_lora_weights=True)
                part.add_adapter(settings, adapter_name=TRAINED)

    def _add_frozen(self, adapters: Sequence[Adapter], keep_reference: bool) -> None:
        for number, adapter in enumerate(adapters):
            put_adapter(self.network, frozen_name(number), adapter)
            self._at_start.append(frozen_name(number))
        self._active = [*self._at_start, *([TRAINED] if self.mode == "lora" else [])]
        if self._start is not None and self.mode == "lora":
            fill_adapter(self.network, TRAINED, self._start)
        if self._start is not None and keep_reference:
            self._add_start(self._start)
        elif self._at_start:
            self._activate(self._active)

    def _add_start(self, start: Adapter) -> None:
        put_adapter(self.network, START, start)
        self._layers = None
        self._at_start.append(START)
        self._activate(self._active)

    def _activate(self, names: Sequence[str]) -> None:
        if names:
            activate(self.network, names, list(self.parameters))
        else:
            for layer in adapted_layers(self.network):
                layer.enable_adapters(False)

    def join(self, name: str) -> None:
        """Let an adapter that was loaded into a frozen network take part in the policy, and not in its reference."""
        for part in parts_in(self.network):
            direct(part)
        self._active = [*(one for one in self._active if one != name), name]
        if self._at_start:
            self._activate(self._active)

    def fixed(self) -> dict[str, torch.Tensor]:
        """The tensors that do not learn, by name, frozen adapters added to those of their layers."""
        frozen = [name for name in self._at_start if name != START]
        found = fixed_tensors(self.network, frozen)
        return {name: value for name, value in found.items() if name not in self.parameters}

    def share_fixed(self, other: TrainableWeights) -> None:
        """Take the tensors that do not learn from another policy of the same model on the same device: two in one
        process then hold one base. Nothing changes them in place. With full weights all tensors learn, and none is
        shared."""
        theirs = dict(other.network.named_parameters())
        for name, value in self.network.named_parameters():
            same = theirs.get(name)
            if value.requires_grad or same is None or same.requires_grad:
                continue
            if (same.shape, same.dtype, same.device) == (value.shape, value.dtype, value.device):
                value.data = same.data

    def keep_reference(self) -> None:
        """Keep the network as it is now as the reference; for a policy that was built without and has not learned."""
        if self.mode == "full" and self._frozen is None:
            self._frozen = copy.deepcopy(self.network).requires_grad_(False)
        elif self.mode != "full" and self._start is not None and START not in self._at_start:
            self._add_start(self._start)

    def networks(self) -> list[torch.nn.Module]:
        """The network, text encoders that learn with it, and the frozen copy of it where one is kept."""
        return [*parts_in(self.network), *([] if self._frozen is None else [self._frozen])]

    @contextmanager
    def reference(self) -> Iterator[torch.nn.Module]:
        """The network as it was before any training, for the time of the context."""
        if self.mode == "full" and self._frozen is not None:
            yield self._frozen
        elif self.mode == "full" or (self._start is not None and START not in self._at_start):
            raise RuntimeError("the frozen reference was not kept: build TrainableWeights with keep_reference=True")
        else:
            with switched(self._adapted_layers(), self._at_start):
                yield self.network

    def _adapted_layers(self) -> list[Any]:
        if self._layers is None or self.mode == "frozen":  # which gets its adapters from elsewhere
            self._layers = adapted_layers(self.network) if getattr(self.network, "peft_config", None) else []
        return self._layers

    def export(self, version: int) -> Weights:
        """A copy of the learning tensors, float32 on the host."""
        return Weights.of(version, self._host())

    def bind(self, weights: Weights) -> str:
        """Copy published tensors into the network; every tensor binds, or none.

        Returns:
            the checksum of the tensors now bound, read back from the network.

        Raises:
            ValueError: a missing, unknown or differently shaped tensor, or a checksum that differs after binding.
        """
        self.check(weights.tensors)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                # A copy, because arrays that come through shared memory are read-only.
                parameter.copy_(torch.from_numpy(np.array(weights.tensors[name])))
        checksum = tensors_checksum(self._host())
        if checksum != weights.checksum:
            raise ValueError(
                f"weights version {weights.version}: bound tensors have checksum {checksum}, "
                f"published {weights.checksum}"
            )
        return checksum

    def check(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Raise ValueError unless names and shapes are exactly those of the learning tensors."""
        missing = sorted(self.parameters.keys() - tensors.keys())
        unknown = sorted(tensors.keys() - self.parameters.keys())
        if missing or unknown:
            raise ValueError(
                f"weights do not fit the network: {len(missing)} tensors missing (first: {missing[:1]}), "
                f"{len(unknown)} unknown (first: {unknown[:1]}), of {len(self.parameters)} expected"
            )
        for name, parameter in self.parameters.items():
            if tuple(tensors[name].shape) != tuple(parameter.shape):
                raise ValueError(
                    f"weights tensor '{name}' has shape {tuple(tensors[name].shape)}, expected {tuple(parameter.shape)}"
                )

    def _host(self) -> dict[str, np.ndarray]:
        return {
            name: value.detach().to("cpu", torch.float32, copy=True).numpy() for name, value in self.parameters.items()
        }
