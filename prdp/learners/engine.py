"""What the learner asks of a device, or of many: evidence of cells, its gradient, a step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from prdp.diffusion.conditions import Conditions
from prdp.diffusion.policy import Policy
from prdp.diffusion.transitions import Transitions
from prdp.evidence.base import Channels, Evidence, Of
from prdp.support.staged import Staged, StagedWhole
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
        factor: what the numbers of the conditions were multiplied by.
    """

    rollout: Rollout
    conditions: Conditions
    update: int
    factor: float = 1.0


class Engine(ABC):
    """Computes evidence and accumulates its gradient by microbatches of cells; keeps weights and optimizer.

    Attributes:
        policy: its network and conditions; what `weights` and `reference` mean.
        transitions: the table that the rollouts were sampled with.
        microbatch: cells per network call.
        evidence_precision: of passes without gradient: float32, tf32, or that of the pass with gradient.
    """

    policy: Policy
    transitions: Transitions
    microbatch: int
    evidence_precision: str = "float32"

    @property
    def precision(self) -> str:
        """Of the pass with gradient: float32, bfloat16 or float16."""
        return self.policy.precision

    @abstractmethod
    def batch(self, rollout: Rollout, update: int) -> Batch:
        """A rollout with its conditions on the device."""

    def scaled(self, batch: Batch, factor: float) -> Batch:
        """The batch with conditions whose numbers are multiplied by a factor near 1."""
        changed = batch.conditions.map(lambda value: value * factor if value.is_floating_point() else value)
        return Batch(batch.rollout, changed, batch.update, batch.factor * factor)

    @abstractmethod
    def evidence(
        self, batch: Batch, cells: Int64, *, of: Of = "policy", channels: Sequence[str] = (), exact: bool = False
    ) -> Channels:
        """Channels at flat cells, without gradient.

        Args:
            of: whose.
            channels: which; none for those of the loss.
            exact: more so than `evidence_precision` is. In float32; for half precision in TF32, whose error on an H100
                is a fortieth of bfloat16's.

        Raises:
            ValueError: evidence that is no number for each cell, or not finite; names the first such cell.
        """

    @abstractmethod
    def accumulate(
        self,
        batch: Batch,
        cells: Int64,
        tables: Tables | Callable[[Channels], Tables],
        progress: Progress | None = None,
    ) -> Channels:
        """Gradient of sum(table * evidence) over channels and cells; the evidence seen, and found beside, on the way.

        Args:
            tables: of all cells; or a function of the evidence seen so far, of which only the cells of the microbatches
                at hand are used. A microbatch has whole groups then: a group must not be larger.
            progress: called with the number of cells done after each microbatch.

        Raises:
            ValueError: as `evidence`.
        """

    @abstractmethod
    def use_microbatch(self, size: int) -> None:
        """Cells per network call from now on; what a pass left that memory ran out in is let go of."""

    def let_go(self) -> None:  # noqa: B027 - most engines hold nothing
        """Hold nothing of a rollout any more."""

    def rest(self, fixed: bool) -> None:  # noqa: B027 - where nothing else needs the device
        """Bring what lies on the device to the host, between updates; nothing else may be asked for until `wake`.

        Args:
            fixed: also the tensors that do not learn.
        """

    def wake(self) -> None:  # noqa: B027 - likewise
        """Undo `rest`."""

    @abstractmethod
    def use_as_reference(self, of: Of) -> None:
        """Let evidence of the reference be that of another policy that is kept."""

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
    def unmoved(self, of: Of) -> bool:
        """Whether the kept weights of 'old' or 'sampled' are those of the policy, to the bit."""

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

    def stage(self) -> Staged:
        """A copy of `state` on the host, or of its parts on the hosts that have them, to be written while learning goes
        on.
        """
        return StagedWhole(self.state())

    @abstractmethod
    def load_state(self, tensors: Mapping[str, np.ndarray], updates: int) -> None:
        """Take back `state` as it was after so many updates.

        Raises:
            ValueError: tensors missing or of another shape; names them.
        """


def microbatches(cells: Int64, size: int, group: int | None = None) -> list[Int64]:
    """Cut flat cells, ascending, into microbatches of `size`; cells of different images and columns share one.

    Args:
        group: cells of a group where a microbatch has to hold whole groups; not larger than `size`.
    """
    ends = np.arange(1, len(cells) + 1)
    if group is not None:
        ends = np.flatnonzero(np.diff(cells // group, append=-1)) + 1
    begin, found = 0, []
    while begin < len(cells):
        end = int(ends[np.searchsorted(ends, begin + size, side="right") - 1])
        assert end > begin, "a group must not be larger than a microbatch"
        found.append(cells[begin:end])
        begin = end
    return found


def check_finite(
    kind: Evidence,
    transitions: Transitions,
    batch: Batch,
    images: Int64,
    columns: Int64,
    name: str,
    values: np.ndarray,
) -> None:
    """Raise ValueError if evidence at cells is not finite; names the first such cell."""
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        place = kind.place(batch.rollout, transitions, int(images[bad[0]]), int(columns[bad[0]]))
        raise ValueError(
            f"'{name}' of update {batch.update} is {values[bad[0]]} at {place}, epoch "
            f"{batch.rollout.prompts.epoch}: {type(kind).__name__} evidence must be finite numbers"
        )


def section(tensors: Mapping[str, np.ndarray], prefix: str) -> Arrays:
    """The tensors of a checkpoint under a prefix, without it."""
    return {key[len(prefix) :]: tensors[key] for key in tensors if key.startswith(prefix)}
