"""What the engines of one device share: the passes over microbatches. The arithmetic is torch's or JAX's."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
import torch

from prdp.diffusion.conditions import Conditions
from prdp.diffusion.policy import Policy
from prdp.diffusion.transitions import Transitions
from prdp.evidence.base import Channels, Evidence, Of, Pass
from prdp.evidence.kept_outputs import KeptOutputs
from prdp.learners.engine import Batch, Engine, Progress, Tables, check_finite, microbatches
from prdp.support.microbatches import give_back
from prdp.types import Float64, Int64, Rollout

Total = Callable[[list[torch.Tensor]], None]
"""Replaces tensors, in place, by their sums over all processes."""


class Seen(NamedTuple):
    """A microbatch in the pass with gradient, before its backward.

    Attributes:
        images, columns: int64 [b], its cells.
        evidence: channel, or what is found beside them -> float [b].
    """

    images: Int64
    columns: Int64
    evidence: dict[str, np.ndarray]


class DeviceEngine(Engine):
    """See `Engine`. Peak memory is one microbatch's, whatever the number of images and columns.

    A policy's own function computes the guided output in every framework; what differs is the network that it calls,
    and the step.

    Args:
        policy: its network and conditions; what `weights` and `reference` mean.
        transitions: the table that the rollouts were sampled with.
        guidance_scale: that the rollouts were sampled with; both branches are differentiated.
        evidence: with its knobs set.
        channels: the ones that the loss is differentiated by.
        microbatch: cells per network call.
        seed: of the run; denoising evidence draws its noise from it.
        kept_bytes: on the host, for outputs of other policies that the pass with gradient takes again; 0 where that
            compares outputs of another rounding.

    Attributes:
        beside: data that is found where these channels are computed, see `Evidence.found_beside`.
        checks_evidence: whether evidence that is not finite is refused here, rather than by who asks.
        shards: processes that each learning tensor is divided among; they make all passes together.
    """

    shards: int = 1

    def __init__(
        self,
        policy: Policy,
        transitions: Transitions,
        guidance_scale: float,
        evidence: Evidence,
        channels: Sequence[str],
        microbatch: int,
        seed: int,
        kept_bytes: float = 0.0,
    ) -> None:
        self.policy = policy
        self.transitions = transitions
        self.guidance_scale = guidance_scale
        self.kind = evidence
        self.channels = tuple(channels)
        self.beside = evidence.found_beside(channels)
        self.microbatch = microbatch
        self.seed = seed
        self.checks_evidence = True
        self._outputs = KeptOutputs(kept_bytes)
        self._reference: Of = "reference"
        self._alike: tuple[Of, ...] = ()

    def batch(self, rollout: Rollout, update: int) -> Batch:
        conditions = Conditions.from_arrays(rollout.conditions, rollout.empty_conditions, self.policy.device)
        return Batch(rollout, conditions, update)

    def use_as_reference(self, of: Of) -> None:
        self._reference = of

    def use_microbatch(self, size: int) -> None:
        self.microbatch = size
        self._outputs.clear()
        self._zero_gradient()
        give_back()

    @torch.no_grad()
    def evidence(
        self, batch: Batch, cells: Int64, *, of: Of = "policy", channels: Sequence[str] = (), exact: bool = False
    ) -> Channels:
        names = tuple(channels) or self.channels
        found = self._unknown(batch, names)
        keeps = of if self.shards == 1 and not exact and of in self._asked_again(names) else None
        self._find_alike()
        with self._arithmetic(exact), self._resolved(of) as network:
            parts = list(self._microbatches(batch, cells))
            # They stay on the device until all passes have been started, so that it does not wait for the host between.
            rows = []
            for part in parts:
                values = self._values(batch, *part, names, network, keeps)
                rows.append([values[name] for name in names])
            for part in self._idle(parts):
                self._values(batch, *part, names, network)
        for (images, columns), of_part in zip(parts, rows, strict=True):
            for name, values_of in zip(names, of_part, strict=True):
                found[name][images, columns] = row = values_of.cpu().numpy()
                self._check_finite(batch, images, columns, name, row)
        return found

    def accumulate(
        self,
        batch: Batch,
        cells: Int64,
        tables: Tables | Callable[[Channels], Tables],
        progress: Progress | None = None,
    ) -> Channels:
        found = self.gather(batch, cells, tables, progress)
        self.settle()
        return found

    def gather(
        self,
        batch: Batch,
        cells: Int64,
        tables: Tables | Callable[[Channels], Tables],
        progress: Progress | None = None,
    ) -> Channels:
        """As `accumulate`, but for `settle`, which has to follow."""
        found = self._unknown(batch, (*self.channels, *self.beside))
        done = 0
        with contextlib.closing(self.passes(batch, cells, whole_groups=callable(tables))) as passes:
            seen = next(passes, None)
            while seen is not None:
                at = seen.images, seen.columns
                for name, row in seen.evidence.items():
                    found[name][at] = row
                known = tables(found) if callable(tables) else tables
                following = answered(passes, np.stack([known[name][at] for name in self.channels]))
                done += len(seen.images)
                if progress:
                    progress(done)
                seen = following
        return found

    def passes(self, batch: Batch, cells: Int64, whole_groups: bool = False) -> Generator[Seen, Float64, None]:
        """The pass with gradient: gives every microbatch after its forward, and takes coefficients, [channels, b].

        The gradient is gathered from zero, and is `settle`d when the last microbatch is through. A pass that is made
        for other processes alone gives no cells.

        Args:
            whole_groups: as for `accumulate` with a function.
        """
        self._zero_gradient()
        self._find_alike()
        with self._gathering(), self._network_of("policy") as network:
            parts, learned = list(self._microbatches(batch, cells, whole_groups)), False
            for number, (images, columns) in enumerate([*parts, *self._idle(parts)], start=1):
                values = self._values(batch, images, columns, (*self.channels, *self.beside), network)
                stacked = torch.stack([values[name] for name in self.channels])
                if number > len(parts):
                    yield Seen(images[:0], columns[:0], {})
                    (0.0 * stacked).sum().backward()
                    continue
                evidence = dict(zip(self.channels, stacked.detach().cpu().numpy(), strict=True))
                evidence |= {name: values[name].cpu().numpy() for name in self.beside}
                for name, row in evidence.items():
                    self._check_finite(batch, images, columns, name, row)
                weights = yield Seen(images, columns, evidence)
                if not weights.any() and self.shards == 1 and (learned or number < len(parts)):
                    continue  # a gradient of 0, which is computed only where it is all there is
                learned = True
                (torch.from_numpy(weights).to(stacked.device, stacked.dtype) * stacked).sum().backward()
        self._outputs.clear()

    def join(self, group: Any) -> None:
        """Take a place among the processes that `shards` tells of; the engine of one process has none to take."""

    @abstractmethod
    def settle(self, total: Total | None = None) -> None:
        """Take what was gathered, or its sum over all processes, as the gradient to step by."""

    @abstractmethod
    def tensors(self) -> dict[str, torch.Tensor]:
        """The learning tensors as they are now, on their device; not to be written to."""

    def _idle(self, parts: Sequence[tuple[Int64, Int64]]) -> list[tuple[Int64, Int64]]:
        """Images and columns of further passes, whose results nobody needs: for processes that make them together.

        Args:
            parts: of the passes that are needed here.
        """
        return []

    def _gathering(self) -> AbstractContextManager[None]:
        """What a framework needs around the pass with gradient."""
        return contextlib.nullcontext()

    @abstractmethod
    def _network_of(self, of: Of) -> AbstractContextManager[torch.nn.Module | None]:
        """The network whose evidence is asked for; None for the policy's own."""

    @abstractmethod
    def _arithmetic(self, exact: bool) -> AbstractContextManager[None]:
        """Of passes without gradient, meanwhile: that of `evidence_precision`, or float32."""

    @abstractmethod
    def _zero_gradient(self) -> None:
        """Forget what was accumulated."""

    def _values(
        self,
        batch: Batch,
        images: Int64,
        columns: Int64,
        names: Sequence[str],
        network: torch.nn.Module | None,
        keeps: Of | None = None,
    ) -> dict[str, torch.Tensor]:
        cells = images, columns
        rollout, update = batch.rollout, batch.update
        of = Pass(
            self.policy,
            self.transitions,
            self.guidance_scale,
            self.seed,
            update,
            network,
            self._resolved,
            self._alike,
            None if keeps is None else lambda output: self._outputs.keep(rollout, update, keeps, *cells, output),
            lambda whose: self._outputs.find(rollout, update, whose, *cells, self.policy.device),
        )
        conditions = batch.conditions[images // batch.rollout.images_per_prompt]
        values = self.kind.values(of, batch.rollout, conditions, images, columns, names)
        label = f"{type(self.kind).__name__}.values"
        if not isinstance(values, Mapping):
            raise ValueError(f"{label} returned a {type(values).__name__}, expected tensors by the names of channels")
        for name in names:
            if name not in values:
                raise ValueError(f"{label} returned {', '.join(values) or 'nothing'}, expected '{name}' among it")
            if values[name].shape != images.shape:
                raise ValueError(
                    f"{label} returned '{name}' of shape {tuple(values[name].shape)}, expected {images.shape}, a value "
                    "a cell"
                )
            if torch.is_grad_enabled() and name not in self.beside and not values[name].requires_grad:
                raise ValueError(f"{label} returned '{name}' without a gradient; nothing could be learned from it")
        return values

    def _asked_again(self, names: Sequence[str]) -> set[Of]:
        """Whose output the pass with gradient takes, of what a pass for these channels makes."""
        passes = (self.kind.passes[name] for name in self.beside)
        return {whose for channel, whose in passes if channel in names}

    def _find_alike(self) -> None:
        """Whose output, of those that the channels take beside the policy's, is the policy's own."""
        others = {of for name, of in self.kind.others.items() if name in self.channels}
        kept = {of for of in others if (self._reference if of == "reference" else of) == "old"}
        self._alike = tuple(kept) if kept and self.unmoved("old") else ()

    def _resolved(self, of: Of) -> AbstractContextManager[torch.nn.Module | None]:
        return self._network_of(self._reference if of == "reference" else of)

    def _check_finite(self, batch: Batch, images: Int64, columns: Int64, name: str, values: np.ndarray) -> None:
        if self.checks_evidence:
            check_finite(self.kind, self.transitions, batch, images, columns, name, values)

    def _unknown(self, batch: Batch, names: Sequence[str]) -> Channels:
        return {name: np.zeros(self.kind.shape(batch.rollout)) for name in names}

    def _microbatches(self, batch: Batch, cells: Int64, whole_groups: bool = False) -> Iterator[tuple[Int64, Int64]]:
        """Images and columns of every microbatch."""
        _, columns = self.kind.shape(batch.rollout)
        group = columns * batch.rollout.images_per_prompt if whole_groups else None
        for some in microbatches(cells, self.microbatch, group):
            yield np.divmod(some, columns)


def answered(passes: Generator[Seen, Float64, None], coefficients: Float64) -> Seen | None:
    """The next microbatch of `DeviceEngine.passes`, None after the last one."""
    try:
        return passes.send(coefficients)
    except StopIteration:
        return None
