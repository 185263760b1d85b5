"""An engine of many: cells are dealt out to ranks, the gradient is summed once, and all ranks take the same step.

The rank in this process is number 0. The others are replicas of it in processes of their own, so that one that dies or
hangs is started again as a copy of this one, and the pass that it was in is made again. Or, with an `FsdpEngine`, some
of them hold one network together: they make all passes at the same time, and their rows are put together here.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from prdp.diffusion.conditions import Conditions
from prdp.evidence.base import Channels, Of
from prdp.learners.device_engine import DeviceEngine
from prdp.learners.engine import Arrays, Batch, Engine, Progress, Tables, check_finite, microbatches, section
from prdp.learners.rank import part_of
from prdp.learners.replicas import Call, Ranks, Replicas
from prdp.support.microbatches import first_words, out_of_memory
from prdp.support.rank_errors import ShardMemoryError
from prdp.support.staged import Staged
from prdp.support.tensor_parts import StoredTensors
from prdp.types import Float64, Int64, Rollout, Weights


class ShardedEngine(Engine):
    """See `Engine`.

    Cells are cut into microbatches as one process cuts them, and a microbatch is one rank's. So evidence and gradient
    of each are the same bits for any number of ranks; the sum of the gradients is, too, with `TorchEngine`.

    Args:
        engine: of this process.
        ranks: the others.
        configuration: digest of what the ranks are built from.

    Raises:
        RankMismatchError: a rank has other versions, another configuration or another network than this process.
        RankLostError: a rank died at the start.
    """

    def __init__(self, engine: DeviceEngine, ranks: Ranks, configuration: str = "") -> None:
        self.policy, self.transitions, self.microbatch = engine.policy, engine.transitions, engine.microbatch
        self.evidence_precision = engine.evidence_precision
        self._engine = engine
        self._held: dict[int, tuple[weakref.ref[Rollout], int, int]] = {}
        """By rank, the part of a rollout that it has: groups from the first to before the end."""
        self._replicas = Replicas(engine, ranks, configuration, self._forget)

    def use_microbatch(self, size: int) -> None:
        self.microbatch = size
        self._replicas.change("use_microbatch", size, microbatch=size)

    def _forget(self, rank: int) -> None:
        self._held.pop(rank, None)

    def batch(self, rollout: Rollout, update: int) -> Batch:
        """Without conditions: each rank has those of its part."""
        return Batch(rollout, Conditions({}), update)

    def let_go(self) -> None:
        self._held.clear()
        self._replicas.everywhere("let_go")

    def evidence(
        self, batch: Batch, cells: Int64, *, of: Of = "policy", channels: Sequence[str] = (), exact: bool = False
    ) -> Channels:
        names = tuple(channels) or self._engine.channels
        return self._passed(lambda: self._evidence(batch, cells, of, names, exact))

    def accumulate(
        self,
        batch: Batch,
        cells: Int64,
        tables: Tables | Callable[[Channels], Tables],
        progress: Progress | None = None,
    ) -> Channels:
        def attempt() -> Channels:
            try:
                if callable(tables):
                    found = self._accumulate_in_step(batch, cells, tables, progress)
                else:
                    found = self._accumulate(batch, cells, tables, progress)
                self._reduce()
            except BaseException:
                self._replicas.own.break_off()  # the tensors of this process are about to be read
                raise
            return found

        return self._passed(attempt)

    def rest(self, fixed: bool) -> None:
        self._replicas.everywhere("rest", fixed)

    def wake(self) -> None:
        self._replicas.everywhere("wake")

    def weights(self, of: Of, version: int) -> Weights:
        if self._engine.shards == 1:
            return self._engine.weights(of, version)
        return Weights.of(version, self._replicas.whole(of) or {})

    def average(self, version: int) -> Weights | None:
        if self._engine.shards == 1:
            return self._engine.average(version)
        found = self._replicas.whole("average")
        return None if found is None else Weights.of(version, found)

    def keep_reference(self) -> None:
        self._replicas.change("keep_reference", keeps_reference=True)

    def keep(self, of: Of) -> None:
        kept = tuple(dict.fromkeys((*self._replicas.setting.kept, of)))
        self._replicas.change("keep", of, kept=kept)

    def use_as_reference(self, of: Of) -> None:
        self._replicas.change("use_as_reference", of, reference=of)

    def unmoved(self, of: Of) -> bool:
        if self._engine.shards == 1:
            return self._engine.unmoved(of)
        return bool(self._replicas.everywhere("unmoved", of)[0])

    def move(self, of: Of, decay: float) -> None:
        self._replicas.everywhere("move", of, decay)

    def unscale(self, scale: float) -> bool:
        answers = self._replicas.everywhere("unscale", scale)
        self._replicas.check_same(answers, "found the gradient finite: {}")
        return bool(answers[0])

    def apply(self, learning_rate: float, ema_decay: float, update: int) -> dict[str, float]:
        """As `Engine.apply`.

        Raises:
            RankDriftError: after the step a rank has other weights than this process.
        """
        answers = self._replicas.everywhere("apply", learning_rate, ema_decay, update)
        self._replicas.stepped({rank: fingerprint for rank, (_, fingerprint) in answers.items()})
        metrics: dict[str, float] = answers[0][0]
        return metrics

    def state(self) -> Arrays:
        if self._engine.shards == 1:
            return self._engine.state()
        return self._replicas.whole("state") or {}

    def stage(self) -> Staged:
        return self._replicas.stage() if self._engine.shards > 1 else self._engine.stage()

    def load_state(self, tensors: Mapping[str, np.ndarray], updates: int) -> None:
        if self._engine.shards > 1:
            shapes = tensors.shapes("weights/") if isinstance(tensors, StoredTensors) else section(tensors, "weights/")
            self._engine.policy.weights.check(shapes)
            self._replicas.load_rows(tensors, updates)
            return
        self._replicas.updates = updates
        self._replicas.check_weights(self._replicas.everywhere("load_state", dict(tensors), updates))

    def _passed(self, attempt: Callable[[], Channels]) -> Channels:
        """A pass, made again when ranks are lost in it.

        Raises:
            ShardMemoryError: memory ran out in one of several that make it together.
        """
        try:
            return self._replicas.retried(attempt)
        except RuntimeError as error:
            if self._engine.shards == 1 or not out_of_memory(error):
                raise
            raise ShardMemoryError(
                f"memory ran out at learner.microbatch={self.microbatch} in a process of a network that is held "
                f"together: {first_words(error)}"
            ) from error

    def _evidence(self, batch: Batch, cells: Int64, of: Of, names: tuple[str, ...], exact: bool) -> Channels:
        shares = self._deal(batch, self._shares(batch, cells))
        arguments = (batch.update, batch.factor, of, names, exact)
        parts = self._on_shares(shares, lambda rank, share: ("evidence", (share, *arguments)))
        return self._joined(batch, shares, parts, names)

    def _accumulate(self, batch: Batch, cells: Int64, tables: Tables, progress: Progress | None) -> Channels:
        shares, names = self._deal(batch, self._shares(batch, cells)), self._engine.channels
        found = (*names, *self._engine.beside)
        flat = np.stack([tables[name].ravel() for name in names])

        def of_all(done: int) -> None:
            """Told by this process alone; the others are about as far."""
            if progress is not None:
                progress(done * len(cells) // len(shares[0]))

        def call(rank: int, share: Int64) -> Call:
            own = (of_all,) if rank == 0 else ()
            return "accumulate", (share, flat[:, share], batch.update, *own)

        return self._joined(batch, shares, self._on_shares(shares, call), found)

    def _accumulate_in_step(
        self, batch: Batch, cells: Int64, tables: Callable[[Channels], Tables], progress: Progress | None
    ) -> Channels:
        """Coefficients are asked for with every microbatch, of all ranks at once."""
        names = self._engine.channels
        parts = self._shares(batch, cells, whole_groups=True)
        shares = self._deal(batch, parts)
        shape = self._engine.kind.shape(batch.rollout)
        found = {name: np.zeros(shape) for name in (*names, *self._engine.beside)}
        seen = self._on_shares(shares, lambda rank, share: ("begin", (share, batch.update)))
        done = 0
        nothing, together = np.empty(0, np.int64), self._engine.shards > 1
        for turn in range(max(map(len, parts))):
            at_hand = {
                rank: part[turn] if turn < len(part) else nothing
                for rank, part in enumerate(parts)
                if together or turn < len(part)
            }
            for rank, some in at_hand.items():
                if len(some):
                    self._check(batch, some, seen[rank])
                    _fill(found, some, seen[rank])
            known = tables(found)
            flat = np.stack([known[name].ravel() for name in names])
            seen = self._replicas.on_ranks(
                {rank: ("go_on", (flat[:, some],)) for rank, some in at_hand.items()}, at_hand
            )
            done += sum(map(len, at_hand.values()))
            if progress is not None:
                progress(done)
        return found

    def _reduce(self) -> None:
        self._replicas.on_ranks(dict.fromkeys(range(self._replicas.count), ("reduce", ())))

    def _shares(self, batch: Batch, cells: Int64, whole_groups: bool = False) -> list[list[Int64]]:
        """The microbatches of each rank."""
        _, columns = self._engine.kind.shape(batch.rollout)
        group = columns * batch.rollout.images_per_prompt if whole_groups else None
        return shares_of(microbatches(cells, self._engine.microbatch, group), self._replicas.count)

    def _deal(self, batch: Batch, parts: Sequence[Sequence[Int64]]) -> list[Int64]:
        """The cells of each rank, which is sent what it needs of the rollout and does not have."""
        shares = [np.concatenate(part) if part else np.empty(0, np.int64) for part in parts]
        size = batch.rollout.images_per_prompt
        group = self._engine.kind.shape(batch.rollout)[1] * size
        calls: dict[int, Call] = {}
        for rank, share in enumerate(shares):
            if len(share) or not rank or self._engine.shards > 1:
                # One of several that go in step makes passes for the others on whatever it has.
                first, end = 0, int(self._engine.shards > 1)
                if len(share):
                    first, end = int(share[0] // group), int(share[-1] // group) + 1
                if not self._has(rank, batch.rollout, first, end):
                    calls[rank] = "take", (part_of(batch.rollout, first, end), first * size)
                    self._held[rank] = weakref.ref(batch.rollout), first, end
        self._replicas.on_ranks(calls)
        return shares

    def _has(self, rank: int, rollout: Rollout, first: int, end: int) -> bool:
        if rank not in self._held:
            return False
        held, begin, stop = self._held[rank]
        return held() is rollout and begin <= first and end <= stop

    def _on_shares(self, shares: Sequence[Int64], call: Callable[[int, Int64], Call]) -> dict[int, Any]:
        """What each rank answers for its cells; one that has none now, but had, is asked too: its gradient is 0."""
        at_work = {rank: share for rank, share in enumerate(shares) if len(share) or rank in self._held or not rank}
        return self._replicas.on_ranks({rank: call(rank, share) for rank, share in at_work.items()}, at_work)

    def _joined(
        self, batch: Batch, shares: Sequence[Int64], parts: Mapping[int, Mapping[str, Float64]], names: Iterable[str]
    ) -> Channels:
        found = {name: np.zeros(self._engine.kind.shape(batch.rollout)) for name in names}
        for rank, values in parts.items():
            self._check(batch, shares[rank], values)
            _fill(found, shares[rank], values)
        return found

    def _check(self, batch: Batch, cells: Int64, values: Mapping[str, np.ndarray]) -> None:
        engine = self._engine
        images, columns = np.divmod(cells, engine.kind.shape(batch.rollout)[1])
        for name, row in values.items():
            check_finite(engine.kind, engine.transitions, batch, images, columns, name, row)


def _fill(found: Channels, cells: Int64, values: Mapping[str, np.ndarray]) -> None:
    for name, row in values.items():
        found[name].ravel()[cells] = row


def shares_of(parts: Sequence[Int64], count: int) -> list[list[Int64]]:
    """Deal microbatches out to ranks, in order and evenly; the first ranks get those that are left over.

    Args:
        parts: the cells of each microbatch.
        count: of ranks.
    """
    each, over = divmod(len(parts), count)
    bounds = [rank * each + min(rank, over) for rank in range(count + 1)]
    return [list(parts[begin:end]) for begin, end in pairwise(bounds)]
