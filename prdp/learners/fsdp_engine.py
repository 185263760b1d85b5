"""The engine of processes that hold one network together: weights, gradients and optimizer are divided among them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

import numpy as np
import torch

from prdp.config import LearnerConfig
from prdp.diffusion.policy import Policy
from prdp.diffusion.transitions import Transitions
from prdp.evidence.base import Evidence, Of
from prdp.learners.engine import Arrays
from prdp.learners.optimizers import build_optimizer
from prdp.learners.sharded_network import ShardedNetwork, ShardGroup
from prdp.learners.torch_engine import Tensors, TorchEngine
from prdp.types import Int64, Weights


class FsdpEngine(TorchEngine):
    """See `TorchEngine`, of whose tensors it holds some rows, from `join` on.

    Every process of a copy makes the same passes in the same order. One that has fewer microbatches makes idle passes
    for the others; none leaves out a pass whose coefficients are all 0. A kept policy, the reference too, is rows of
    weights that are put in the place of the learning ones for a pass.

    Weights are gathered, and gradients come, in float32, whatever the network computes in.

    Args:
        shards: processes that hold one copy.
    """

    def __init__(
        self,
        policy: Policy,
        transitions: Transitions,
        guidance_scale: float,
        evidence: Evidence,
        channels: Sequence[str],
        config: LearnerConfig,
        seed: int,
        shards: int,
    ) -> None:
        whole = dataclasses.replace(config, ema_decay=0.0)  # nothing is kept of what is about to be divided
        super().__init__(policy, transitions, guidance_scale, evidence, channels, whole, seed)
        self.shards, self._config = shards, config
        self._group: ShardGroup | None = None
        self._network: ShardedNetwork | None = None
        if policy.device.type == "cuda":
            torch.cuda.set_device(policy.device)  # by which FSDP and NCCL go

    def join(self, group: ShardGroup) -> None:
        """Keep the rows of this process alone."""
        self._group = group
        self._network = ShardedNetwork(self.policy.weights.network, group)
        self.policy.weights.parameters = self._network.parameters
        self._parameters = {
            name: torch.nn.Parameter(value, requires_grad=False) for name, value in self._network.rows.items()
        }
        self._optimizer = build_optimizer(self._config, self._parameters)
        self._average = self._copy() if self._config.ema_decay else None

    def weights(self, of: Of, version: int) -> Weights:
        """As `Engine.weights`, of the rows that are here."""
        return Weights.of(version, self.rows(of) or {})

    def average(self, version: int) -> Weights | None:
        """As `Engine.average`, of the rows that are here."""
        found = self.rows("average")
        return None if found is None else Weights.of(version, found)

    def rows(self, what: str) -> Arrays | None:
        """A copy of the rows that are here: of a policy, of the 'average', None without one, or of all 'state'."""
        if what == "state":
            return self.state()
        tensors: Mapping[str, torch.Tensor] | None = self._parameters
        if what == "average":
            tensors = self._average
        elif what != "policy":
            tensors = self._of(what)  # type: ignore[arg-type]
        return None if tensors is None else {name: _host(value) for name, value in tensors.items()}

    def lengths(self) -> dict[str, int]:
        """Rows of the whole learning tensors, by name."""
        assert self._network is not None, "join comes first"
        return {name: len(value) for name, value in self._network.parameters.items()}

    def keep_reference(self) -> None:
        self.keep("reference")

    def unmoved(self, of: Of) -> bool:
        """As `Engine.unmoved`, of the whole tensors; all processes of the copy have to ask."""
        return bool(self._of_each(float(super().unmoved(of))).min())

    @contextmanager
    def _network_of(self, of: Of) -> Iterator[torch.nn.Module | None]:
        # Autocast would keep a copy of every weight for the time of a pass.
        cached = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)
        try:
            with nullcontext() if of == "policy" else self._exchanged(self._of(of)):
                yield None
        finally:
            torch.set_autocast_cache_enabled(cached)

    @torch.no_grad()
    def _swap(self, others: Tensors) -> None:
        """Exchange values, in place: FSDP gathers from where the rows have always been."""
        for name, value in self._parameters.items():
            own = value.clone()
            value.copy_(others[name])
            others[name].copy_(own)

    def _idle(self, parts: Sequence[tuple[Int64, Int64]]) -> list[tuple[Int64, Int64]]:
        most = int(self._of_each(float(len(parts))).max())
        images, columns = parts[-1] if parts else (np.zeros(1, np.int64), np.zeros(1, np.int64))
        return [(images[:1], columns[:1])] * (most - len(parts))

    @contextmanager
    def _gathering(self) -> Iterator[None]:
        assert self._network is not None, "join comes first"
        with self._network.with_gradients(self._add_exact):
            yield

    def _add_exact(self, name: str, gradient: torch.Tensor) -> None:
        if name in self._sums:
            self._sums[name].add_(gradient)
        else:
            self._sums[name] = gradient.clone()

    def _of_whole_tensors(self, table: torch.Tensor) -> torch.Tensor:
        assert self._group is not None, "join comes first"
        largest, squares = self._group.of_each(table).unbind(1)
        return torch.stack([largest.amax(0), squares.sum(0)])

    def _bind(self, tensors: Mapping[str, np.ndarray], updates: int) -> None:
        for name, value in self._read(
            {f"weights/{name}": array for name, array in tensors.items()}, "weights/"
        ).items():
            with torch.no_grad():
                self._parameters[name].copy_(value)

    def _check(self, tensors: Mapping[str, np.ndarray]) -> None:
        here = {name: tuple(value.shape) for name, value in self._parameters.items()}
        there = {name: tuple(value.shape) for name, value in tensors.items()}
        wrong = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
        if wrong:
            first = wrong[0]
            raise ValueError(
                f"weights do not fit the network: {len(wrong)} tensors differ, first '{first}': the rows of this "
                f"process have shape {there.get(first)}, expected {here.get(first)}"
            )

    def _of_each(self, number: float) -> torch.Tensor:
        """A number of every process of the copy."""
        assert self._group is not None, "join comes first"
        return self._group.of_each(torch.tensor([number], dtype=torch.float64, device=self.policy.device)).cpu()


def _host(value: torch.Tensor) -> np.ndarray:
    array: np.ndarray = value.detach().to("cpu", copy=True).numpy()
    return array
