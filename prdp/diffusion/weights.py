"""Which weights of a network learn: all of them, or LoRA adapters; and the frozen start beside them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from prdp.types import Weights, tensors_checksum


class TrainableWeights:
    """The learning tensors of a network, by name.

    With LoRA the reference is the network with its adapters off; with full weights it is a frozen copy, made only where
    `keep_reference` asks for it.

    Args:
        network: a diffusers model (LoRA needs its `add_adapter`).
        mode: 'lora', 'full', or 'frozen': nothing learns, for networks that are only sampled from. Their reference is
            the network without the adapters that were loaded into it.
        rank, alpha, targets: of LoRA, as in peft's LoraConfig.
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
        seed: int = 0,
        keep_reference: bool = True,
    ) -> None:
        self.network: Any = network
        self.mode = mode
        self._frozen: torch.nn.Module | None = None
        network.requires_grad_(False)
        if mode == "lora":
            self._add_lora(rank, alpha, targets or [], seed)
        elif mode == "full":
            if keep_reference:
                self._frozen = copy.deepcopy(network)
            network.requires_grad_(True)
        elif mode != "frozen":
            raise ValueError(f"learner.mode is {mode!r}, expected lora or full")
        self.parameters = {name: value for name, value in network.named_parameters() if value.requires_grad}
        # Learning tensors are float32 whatever the network's precision, or small updates would round away.
        for value in self.parameters.values():
            value.data = value.data.float()

    def _add_lora(self, rank: int, alpha: float, targets: list[str], seed: int) -> None:
        from peft import LoraConfig

        from prdp.diffusion.lora_targets import lora_target_problems

        # A target that names nothing would train fewer layers than asked for, in silence.
        if problems := lora_target_problems(self.network, targets):
            raise ValueError("\n".join(problems))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network.add_adapter(
                LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, init_lora_weights=True)
            )

    def keep_reference(self) -> None:
        """Keep the network as it is now as the reference; for a policy that was built without and has not learned."""
        if self.mode == "full" and self._frozen is None:
            self._frozen = copy.deepcopy(self.network).requires_grad_(False)

    def networks(self) -> list[torch.nn.Module]:
        """The network, and the frozen copy of it where one is kept."""
        return [self.network] if self._frozen is None else [self.network, self._frozen]

    @contextmanager
    def reference(self) -> Iterator[torch.nn.Module]:
        """The network as it was before any training, for the time of the context."""
        if self.mode == "lora" or getattr(self.network, "peft_config", None):
            self.network.disable_adapters()
            try:
                yield self.network
            finally:
                self.network.enable_adapters()
        elif self.mode == "frozen":
            yield self.network
        elif self._frozen is None:
            raise RuntimeError("the frozen reference was not kept: build TrainableWeights with keep_reference=True")
        else:
            yield self._frozen

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
