"""One of the processes that a learner consists of: its engine, the rows it works on, its part of a sum."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from prdp.evidence.base import Of
from prdp.learners.device_engine import DeviceEngine, Seen, answered
from prdp.learners.engine import Arrays, Batch, Progress
from prdp.learners.part_writer import PartWriter
from prdp.learners.rank_identity import fingerprint, identity_of
from prdp.support.remote_rows import part_of_rows
from prdp.support.tensor_parts import StoredTensors
from prdp.types import Float64, Int64, PromptBatch, Rollout, UInt8


class Group(Protocol):
    """The processes of a learner, to sum over."""

    def total(self, tensors: list[torch.Tensor]) -> None:
        """Replace tensors, in place, by their sums over all processes, which have to be the same bits in each.

        Raises:
            ReductionError: the processes lost each other.
        """
        ...


@dataclass(frozen=True)
class Setting:
    """What a rank that joins late has to be told, besides the state.

    Attributes:
        keeps_reference: whether the start is kept as the reference.
        kept: the policies that are kept.
        reference: whose evidence is that of the reference.
        microbatch: cells per network call; None for what the configuration says.
    """

    keeps_reference: bool = False
    kept: tuple[Of, ...] = ()
    reference: Of = "reference"
    microbatch: int | None = None


class LearnerRank:
    """Works on shares of cells, and steps as all other ranks do.

    Cells, images and prompts are counted through the whole rollout, whatever part of it is here.

    Args:
        engine: of this process alone.
        configuration: digest of what it was built from.
    """

    def __init__(self, engine: DeviceEngine, configuration: str = "") -> None:
        self._engine = engine
        # Positions of a part of a rollout would be told; who asks knows those of the whole.
        engine.checks_evidence = False
        self._configuration = configuration
        self._group: Group | None = None
        self._batch: Batch | None = None
        self._first_image = 0
        self._passes: Generator[Seen, Float64, None] | None = None
        self._writer = PartWriter()

    @property
    def engine(self) -> DeviceEngine:
        """Of this process. Passes that others broke off end first: in them its tensors may be converted."""
        self.break_off()
        return self._engine

    def identity(self) -> dict[str, str]:
        """What has to be the same on all ranks, by what it is called in messages."""
        return identity_of(self.engine, self._configuration)

    def join(self, group: Group) -> None:
        """Sum over this group from now on."""
        self._group = group
        self.engine.join(group)

    def leave(self) -> None:
        """Let the others find out at once that this rank takes part no more."""
        close = getattr(self._group, "close", None)
        if close is not None:
            close()

    def adopt(self, setting: Setting, tensors: Mapping[str, np.ndarray], updates: int) -> str:
        """Become what the other ranks are, from the start on; the fingerprint of the weights."""
        if setting.keeps_reference:
            self.engine.keep_reference()
        for of in setting.kept:
            self.engine.keep(of)
        self.engine.use_as_reference(setting.reference)
        if setting.microbatch is not None:
            self.use_microbatch(setting.microbatch)
        return self.load_state(tensors, updates)

    def take(self, rollout: Rollout, first_image: int) -> None:
        """Work on this part of a rollout, whole groups from `first_image` on; its rows may be elsewhere."""
        self._batch, self._first_image = self.engine.batch(rollout, 0), first_image

    def let_go(self) -> None:
        """Hold nothing of a rollout any more."""
        self.break_off()
        self._batch = None

    def evidence(
        self, cells: Int64, update: int, factor: float, of: Of, channels: Sequence[str], exact: bool
    ) -> dict[str, Float64]:
        """Channels at cells, float64 [b] each; see `Engine.evidence`.

        Args:
            factor: see `Batch.factor`.
        """
        batch, local = self._at(cells, update)
        if factor != batch.factor:
            batch = self.engine.scaled(batch, factor / batch.factor)
        found = self.engine.evidence(batch, local, of=of, channels=channels, exact=exact)
        return {name: table.ravel()[local] for name, table in found.items()}

    def accumulate(
        self, cells: Int64, coefficients: Float64, update: int, progress: Progress | None = None
    ) -> dict[str, Float64]:
        """Gather the gradient at cells, and give the evidence, float64 [b] each; `reduce` has to follow.

        Args:
            coefficients: [channels, b].
        """
        batch, local = self._at(cells, update)
        shape = self.engine.kind.shape(batch.rollout)
        tables = {}
        for name, row in zip(self.engine.channels, coefficients, strict=True):
            tables[name] = np.zeros(shape)
            tables[name].ravel()[local] = row
        found = self.engine.gather(batch, local, tables, progress)
        return {name: table.ravel()[local] for name, table in found.items()}

    def begin(self, cells: Int64, update: int) -> dict[str, np.ndarray] | None:
        """Begin to gather the gradient at cells, by microbatches of whole groups: the evidence of the first one."""
        batch, local = self._at(cells, update)
        self._passes = self.engine.passes(batch, local, whole_groups=True)
        seen = next(self._passes, None)
        return None if seen is None else seen.evidence

    def go_on(self, coefficients: Float64) -> dict[str, np.ndarray] | None:
        """Gather the gradient of the microbatch at hand: the evidence of the next, None after the last.

        Args:
            coefficients: [channels, b].
        """
        assert self._passes is not None, "begin comes first"
        seen = answered(self._passes, coefficients)
        return None if seen is None else seen.evidence

    def reduce(self) -> None:
        """Sum what was gathered over all ranks.

        Raises:
            ReductionError: see `Group.total`.
        """
        self.engine.settle(None if self._group is None else self._group.total)

    def unscale(self, scale: float) -> bool:
        """See `Engine.unscale`."""
        return self.engine.unscale(scale)

    def apply(self, learning_rate: float, ema_decay: float, update: int) -> tuple[dict[str, float], str]:
        """What `Engine.apply` gives, and the fingerprint of the weights after the step."""
        metrics = self.engine.apply(learning_rate, ema_decay, update)
        return metrics, self.fingerprint()

    def keep_reference(self) -> None:
        """See `Engine.keep_reference`."""
        self.engine.keep_reference()

    def keep(self, of: Of) -> None:
        """See `Engine.keep`."""
        self.engine.keep(of)

    def move(self, of: Of, decay: float) -> None:
        """See `Engine.move`."""
        self.engine.move(of, decay)

    def use_as_reference(self, of: Of) -> None:
        """See `Engine.use_as_reference`."""
        self.engine.use_as_reference(of)

    def use_microbatch(self, size: int) -> None:
        """See `Engine.use_microbatch`."""
        self.engine.use_microbatch(size)

    def load_state(self, tensors: Mapping[str, np.ndarray], updates: int) -> str:
        """As `Engine.load_state`; the fingerprint of the weights."""
        self.engine.load_state(tensors, updates)
        return self.fingerprint()

    def rows(self, what: str) -> Arrays | None:
        """See `prdp.learners.fsdp_engine.FsdpEngine.rows`."""
        rows: Arrays | None = self.engine.rows(what)  # type: ignore[attr-defined]
        return rows

    def rest(self, fixed: bool) -> None:
        """See `Engine.rest`."""
        self.engine.rest(fixed)

    def wake(self) -> None:
        """See `Engine.wake`."""
        self.engine.wake()

    def stage(self) -> None:
        """Copy the rows that are here, for `write_part`."""
        self._writer.stage(self.rows("state") or {})

    def write_part(self, folder: str, part: int, parts: int, others: Mapping[str, np.ndarray]) -> bool:
        """Begin to write what was staged; see `PartWriter.begin`."""
        lengths: Mapping[str, int] = self.engine.lengths()  # type: ignore[attr-defined]
        return self._writer.begin(folder, part, parts, lengths, others)

    def part_written(self, seconds: float) -> str | None:
        """See `PartWriter.written`."""
        return self._writer.written(seconds)

    def staged_rows(self) -> Arrays:
        """What was staged and could not be written from here."""
        return self._writer.staged()

    def load_part(self, tensors: StoredTensors, part: int, parts: int, updates: int) -> str | None:
        """As `load_state`, of this part of a checkpoint; None where its files are not seen from here."""
        return self.load_state(tensors.part(part, parts), updates) if tensors.reachable() else None

    def unmoved(self, of: Of) -> bool:
        """See `Engine.unmoved`."""
        return self.engine.unmoved(of)

    def fingerprint(self) -> str:
        """Of the weights as they are now."""
        return fingerprint(self.engine.tensors())

    def break_off(self) -> None:
        """End the passes that `go_on` would go on with, and what their graph holds."""
        if self._passes is not None:
            self._passes.close()
        self._passes = None

    def _at(self, cells: Int64, update: int) -> tuple[Batch, Int64]:
        """The batch at this update, and where the cells are in what is here of it."""
        assert self._batch is not None, "take comes first"
        _, columns = self.engine.kind.shape(self._batch.rollout)
        return dataclasses.replace(self._batch, update=update), cells - self._first_image * columns


def part_of(rollout: Rollout, first: int, end: int) -> Rollout:
    """The groups of prompts `first` to `end - 1`: what evidence is computed from, without images and rewards."""
    prompts, size = rollout.prompts, rollout.images_per_prompt
    some = slice(first, end)
    count = len(prompts.texts[some]) * size
    images: UInt8 = np.empty((count, 0, 0, 3), np.uint8)
    return dataclasses.replace(
        rollout,
        prompts=PromptBatch(
            prompts.epoch, prompts.offset + first, prompts.texts[some], prompts.metadata[some], prompts.indices[some]
        ),
        images=images,
        stored={name: part_of_rows(value, first * size, end * size) for name, value in rollout.stored.items()},
        conditions={name: part_of_rows(value, first, end) for name, value in rollout.conditions.items()},
        rewards=None,
        sub_scores={},
        network_passes=None,
    )
