"""What a device can do for a learner: evidence of cells, its gradient, a step. The arithmetic is torch's or JAX's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch

from prdp.diffusion.conditions import Conditions
from prdp.diffusion.policy import Policy
from prdp.diffusion.transitions import Transitions
from prdp.evidence.base import Channels, Evidence, Of, Pass
from prdp.types import Int64, Rollout, Weights

Progress = Callable[[int], None]
Arrays = dict[str, np.ndarray]
Tables = Mapping[str, np.ndarray]
"""Channel -> d loss / d evidence, [n, T]."""


@dataclass(frozen=True)
class Batch:
    """A rollout as an update sees it.

    Attributes:
        rollout: with what its evidence is computed from.
        conditions: a row a prompt, on the engine's device.
        update: number of the optimizer step.
    """

    rollout: Rollout
    conditions: Conditions
    update: int


class Engine(ABC):
    """Computes evidence and accumulates its gradient by microbatches of cells; keeps weights and optimizer.

    Peak memory is one microbatch's, whatever the number of images and columns. A policy's own function computes the
    guided output in every framework; what differs is the network that it calls, and the step.

    Args:
        policy: its network and conditions; what `weights` and `reference` mean.
        transitions: the table that the rollouts were sampled with.
        guidance_scale: that the rollouts were sampled with; both branches are differentiated.
        evidence: with its knobs set.
        channels: the ones that the loss is differentiated by.
        microbatch: cells per network call.
        seed: of the run; denoising evidence draws its noise from it.
    """

    def __init__(
        self,
        policy: Policy,
        transitions: Transitions,
        guidance_scale: float,
        evidence: Evidence,
        channels: Sequence[str],
        microbatch: int,
        seed: int,
    ) -> None:
        self.policy = policy
        self.transitions = transitions
        self._guidance_scale = guidance_scale
        self._evidence = evidence
        self._channels = tuple(channels)
        self._microbatch = microbatch
        self._seed = seed
        self.reference: Of = "reference"
        """Whose evidence that of the reference is."""

    @property
    def precision(self) -> str:
        """Of the pass with gradient: float32, bfloat16 or float16. Passes without are float32 in any case."""
        return self.policy.precision

    def batch(self, rollout: Rollout, update: int) -> Batch:
        """A rollout with its conditions on the device."""
        conditions = Conditions.from_arrays(rollout.conditions, rollout.empty_conditions, self.policy.device)
        return Batch(rollout, conditions, update)

    def scaled(self, batch: Batch, factor: float) -> Batch:
        """The batch with conditions whose numbers are multiplied by a factor near 1."""
        changed = batch.conditions.map(lambda value: value * factor if value.is_floating_point() else value)
        return Batch(batch.rollout, changed, batch.update)

    @torch.no_grad()
    def evidence(self, batch: Batch, cells: Int64, *, of: Of = "policy", channels: Sequence[str] = ()) -> Channels:
        """Channels at flat cells, without gradient, computed in float32.

        Args:
            of: whose.
            channels: which; none for those of the loss.

        Raises:
            ValueError: evidence that is no number for each cell, or not finite; names the first such cell.
        """
        names = tuple(channels) or self._channels
        found = self._unknown(batch, names)
        with self._float32(), self._resolved(of) as network:
            for images, columns in self._microbatches(batch, cells):
                values = self._values(batch, images, columns, names, network)
                for name in names:
                    found[name][images, columns] = row = values[name].cpu().numpy()
                    self._check_finite(batch, images, columns, name, row)
        return found

    def accumulate(
        self,
        batch: Batch,
        cells: Int64,
        tables: Tables | Callable[[Channels], Tables],
        progress: Progress | None = None,
    ) -> Channels:
        """Gradient of sum(table * evidence) over channels and cells; the evidence seen on the way.

        Args:
            tables: of all cells; or a function of the evidence seen so far, called with every microbatch, of which only
                the microbatch's cells are used. It has whole groups then: a group must not be larger.
            progress: called with the number of cells done after each microbatch.

        Raises:
            ValueError: as `evidence`.
        """
        self._zero_gradient()
        found = self._unknown(batch, self._channels)
        done = 0
        with self._network_of("policy") as network:
            for images, columns in self._microbatches(batch, cells, whole_groups=callable(tables)):
                values = self._values(batch, images, columns, self._channels, network)
                stacked = torch.stack([values[name] for name in self._channels])
                for name, row in zip(self._channels, stacked.detach().cpu().numpy(), strict=True):
                    found[name][images, columns] = row
                    self._check_finite(batch, images, columns, name, row)
                known = tables(found) if callable(tables) else tables
                weights = np.stack([known[name][images, columns] for name in self._channels])
                (torch.from_numpy(weights).to(stacked.device, stacked.dtype) * stacked).sum().backward()
                done += len(images)
                if progress:
                    progress(done)
        return found

    @abstractmethod
    def weights(self, of: Of, version: int) -> Weights:
        """A copy of the learning tensors of the policy, or of one that is kept."""

    @abstractmethod
    def average(self, version: int) -> Weights | None:
        """A copy of the moving average; None where none is kept."""

    @abstractmethod
    def keep_reference(self) -> None:
        """Keep the weights as they are now as the reference; before anything is learned or loaded."""

    @abstractmethod
    def keep(self, of: Of) -> None:
        """Keep the weights as they are now as those of 'old' or 'sampled'."""

    @abstractmethod
    def move(self, of: Of, decay: float) -> None:
        """kept <- decay * kept + (1 - decay) * weights."""

    @abstractmethod
    def unscale(self, scale: float) -> bool:
        """Divide the accumulated gradient by a power of two; whether all of it is finite."""

    @abstractmethod
    def apply(self, learning_rate: float, ema_decay: float, update: int) -> dict[str, float]:
        """Clip the accumulated gradient, step, fold into the average.

        Returns:
            grad_norm before clipping and parameters_without_gradient.

        Raises:
            ValueError: the gradient is not finite; names a tensor. Nothing is stepped.
        """

    @abstractmethod
    def state(self) -> Arrays:
        """Weights, optimizer, moving average and kept policies, the same names for every framework.

        Returns:
            {"weights/<name>", "optimizer/{step, exp_avg, exp_avg_sq}/<name>", "ema/<name>", "old/<name>",
            "sampled/<name>": array}
        """

    @abstractmethod
    def load_state(self, tensors: Mapping[str, np.ndarray], updates: int) -> None:
        """Take back `state` as it was after so many updates.

        Raises:
            ValueError: tensors missing or of another shape; names them.
        """

    @abstractmethod
    def _network_of(self, of: Of) -> AbstractContextManager[torch.nn.Module | None]:
        """The network whose evidence is asked for; None for the policy's own."""

    @abstractmethod
    def _float32(self) -> AbstractContextManager[None]:
        """Everything computes in float32 meanwhile."""

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
    ) -> dict[str, torch.Tensor]:
        of = Pass(
            self.policy,
            self.transitions,
            self._guidance_scale,
            self._seed,
            batch.update,
            network,
            self._resolved,
        )
        conditions = batch.conditions[images // batch.rollout.images_per_prompt]
        values = self._evidence.values(of, batch.rollout, conditions, images, columns, names)
        kind = f"{type(self._evidence).__name__}.values"
        if not isinstance(values, Mapping):
            raise ValueError(f"{kind} returned a {type(values).__name__}, expected tensors by the names of channels")
        for name in names:
            if name not in values:
                raise ValueError(f"{kind} returned {', '.join(values) or 'nothing'}, expected '{name}' among it")
            if values[name].shape != images.shape:
                raise ValueError(
                    f"{kind} returned '{name}' of shape {tuple(values[name].shape)}, expected {images.shape}, a value "
                    "a cell"
                )
            if torch.is_grad_enabled() and not values[name].requires_grad:
                raise ValueError(f"{kind} returned '{name}' without a gradient; nothing could be learned from it")
        return values

    def _resolved(self, of: Of) -> AbstractContextManager[torch.nn.Module | None]:
        return self._network_of(self.reference if of == "reference" else of)

    def _check_finite(self, batch: Batch, images: Int64, columns: Int64, name: str, values: np.ndarray) -> None:
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            image, column = int(images[bad[0]]), int(columns[bad[0]])
            place = self._evidence.place(batch.rollout, self.transitions, image, column)
            raise ValueError(
                f"'{name}' of update {batch.update} is {values[bad[0]]} at {place}, epoch "
                f"{batch.rollout.prompts.epoch}: {type(self._evidence).__name__} evidence must be finite numbers"
            )

    def _unknown(self, batch: Batch, names: Sequence[str]) -> Channels:
        return {name: np.zeros(self._evidence.shape(batch.rollout)) for name in names}

    def _microbatches(
        self, batch: Batch, cells: Int64, whole_groups: bool = False
    ) -> Iterator[tuple[Int64, Int64]]:
        """Images and columns of every microbatch; cells of different steps share one."""
        _, columns = self._evidence.shape(batch.rollout)
        ends = np.arange(1, len(cells) + 1)
        if whole_groups:
            groups = cells // (columns * batch.rollout.images_per_prompt)
            ends = np.flatnonzero(np.diff(groups, append=-1)) + 1
        begin = 0
        while begin < len(cells):
            end = int(ends[np.searchsorted(ends, begin + self._microbatch, side="right") - 1])
            assert end > begin, "a group must not be larger than a microbatch"
            yield np.divmod(cells[begin:end], columns)
            begin = end


def section(tensors: Mapping[str, np.ndarray], prefix: str) -> Arrays:
    """The tensors of a checkpoint under a prefix, without it."""
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
