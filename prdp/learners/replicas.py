"""The ranks of a learner as replicas: asked together, watched for drift, and started again when they are lost.

Rank 0 is in this process. All ranks hold the same weights, so a lost one is replaced by a copy of rank 0, and the pass
that it was in is made again. Where some hold one network together, what a lost one held is in a checkpoint alone.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

import numpy as np

from prdp.learners.device_engine import DeviceEngine
from prdp.learners.engine import Arrays
from prdp.learners.part_writer import StagedParts
from prdp.learners.rank import Group, LearnerRank, Setting
from prdp.learners.rows import joined, rows_of
from prdp.support.rank_errors import (
    RankDriftError,
    RankLostError,
    RankMismatchError,
    ReductionError,
    ShardLostError,
)
from prdp.support.tensor_parts import StoredTensors
from prdp.types import Int64

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")
Call = tuple[str, tuple[Any, ...]]
"""A method of `LearnerRank`, and its arguments."""


class Answer(Protocol):
    """What a rank was asked for."""

    def result(self) -> Any:
        """Wait for it.

        Raises:
            RankLostError: the rank died, or hung and was ended.
            Exception: what the rank raised, as itself.
        """
        ...


class Ranks(Protocol):
    """The ranks in other processes, numbers 1 to `count` - 1; each has one `LearnerRank`."""

    count: int

    def ask(self, number: int, method: str, *arguments: Any, units: int = 1) -> Answer:
        """Call a method of a rank without waiting; calls of one rank are served in order.

        Args:
            units: size of the work, cells.
        """
        ...

    def connect(self) -> Group:
        """Have all ranks meet in a new group; that of rank 0.

        Raises:
            ReductionError, RankLostError: they do not.
        """
        ...

    def replace(self, number: int, error: RankLostError) -> None:
        """Start a lost rank again.

        Raises:
            Exception: ranks were lost too often in a row.
        """
        ...

    def progressed(self) -> None:
        """A step is done, so that earlier losses no longer count as in a row."""
        ...

    def name(self, number: int) -> str:
        """For people: 'learner rank 2 (process 123)'."""
        ...


class Replicas:
    """Rank 0, which is `own`, and the others.

    Args:
        engine: of this process.
        ranks: the others.
        configuration: digest of what all are built from.
        on_lost: called with the number of a rank that lost what it held.

    Attributes:
        updates: that were done.
        setting: what all ranks keep.

    Raises:
        RankMismatchError: a rank has other versions, another configuration or another network than this process.
        RankLostError: a rank died at the start.
    """

    def __init__(self, engine: DeviceEngine, ranks: Ranks, configuration: str, on_lost: Callable[[int], None]) -> None:
        self.own, self.updates = LearnerRank(engine, configuration), 0
        self._engine, self._ranks, self._on_lost = engine, ranks, on_lost
        self.setting = Setting()
        self._missing: dict[int, RankLostError] = {}
        self._identity = self.own.identity()
        asked = {number: ranks.ask(number, "identity") for number in range(1, ranks.count)}
        for number, answer in asked.items():
            self._check_identity(number, answer.result())
        self.own.join(ranks.connect())

    @property
    def count(self) -> int:
        """Of all ranks."""
        return self._ranks.count

    def change(self, method: str, *arguments: Any, **setting: Any) -> None:
        """Have all ranks change what they keep; those that start again are told by `setting`, fields of `Setting`."""
        self.setting = dataclasses.replace(self.setting, **setting)
        self.everywhere(method, *arguments)

    def stepped(self, fingerprints: Mapping[int, str]) -> None:
        """A step is done; the weights after it must be those of rank 0."""
        self.updates += 1
        self.check_weights(fingerprints)
        self._ranks.progressed()

    def whole(self, what: str) -> Arrays | None:
        """What the ranks of the first copy of the network hold, put together; see `FsdpEngine.rows`."""
        parts = self.on_ranks(dict.fromkeys(range(self._engine.shards), ("rows", (what,))))
        return None if parts[0] is None else joined([parts[rank] for rank in sorted(parts)])

    def load_rows(self, tensors: Mapping[str, np.ndarray], updates: int) -> None:
        """Have every rank take its part of a whole state; of files, each reads its own where it sees them."""
        self.updates, shards = updates, self._engine.shards
        answers: dict[int, Any] = dict.fromkeys(range(self._ranks.count))
        stored = tensors if isinstance(tensors, StoredTensors) else None
        if stored is not None:
            answers = self.on_ranks({rank: ("load_part", (stored, rank % shards, shards, updates)) for rank in answers})
        for rank, told in answers.items():
            if told is None:
                part = rank % shards
                rows = rows_of(tensors, part, shards) if stored is None else dict(stored.part(part, shards))
                answers |= self.on_ranks({rank: ("load_state", (rows, updates))})
        self.check_weights(answers)

    def stage(self) -> StagedParts:
        """Have each rank of the first copy of the network copy its part, to be written while learning goes on."""
        self.on_ranks(dict.fromkeys(range(self._engine.shards), ("stage", ())))
        lengths: Mapping[str, int] = self._engine.lengths()  # type: ignore[attr-defined]
        return StagedParts(self.on_ranks, self._engine.shards, lengths)

    def everywhere(self, method: str, *arguments: Any) -> dict[int, Any]:
        """What the ranks that are there answer; one that is lost on the way is started again before the next pass."""
        there = [rank for rank in range(self._ranks.count) if rank not in self._missing]
        try:
            return self.on_ranks(dict.fromkeys(there, (method, arguments)))
        except PassLostError as lost:
            return lost.answers

    def on_ranks(self, calls: Mapping[int, Call], cells: Mapping[int, Int64] | None = None) -> dict[int, Any]:
        """Answers by rank, this process doing its own part meanwhile.

        Raises:
            PassLostError: ranks were lost, or lost each other; has the answers of the rest.
            ShardLostError: likewise, where a rank holds what no other does.
            Exception: what a rank raised, this process first.
        """
        sizes = {rank: len(some) for rank, some in (cells or {}).items()}
        asked = {
            rank: self._ranks.ask(rank, method, *arguments, units=max(sizes.get(rank, 1), 1))
            for rank, (method, arguments) in calls.items()
            if rank
        }
        outcomes: dict[int, Callable[[], Any]] = {}
        if 0 in calls:
            method, arguments = calls[0]
            outcomes[0] = lambda: getattr(self.own, method)(*arguments)
        outcomes |= {rank: answer.result for rank, answer in asked.items()}
        answers: dict[int, Any] = {}
        failed: Exception | None = None
        lost: Exception | None = None
        for rank, outcome in outcomes.items():
            try:
                answers[rank] = outcome()
            except RankLostError as error:
                self._missing[rank] = lost = error
            except ReductionError as error:
                lost = lost or error
            except Exception as error:  # noqa: BLE001 - the others have to be waited for
                failed = failed or error
                self._release(rank)
            except BaseException:
                self._release(rank)
                raise
        if failed is not None:
            raise failed
        if lost is not None:
            if self._engine.shards > 1:
                raise ShardLostError(f"{lost}; what it held of the network is in the last checkpoint") from lost
            raise PassLostError(answers, lost)
        return answers

    def _release(self, rank: int) -> None:
        """Where this process breaks off, ranks that make the same passes would wait for it."""
        if rank == 0 and self._engine.shards > 1:
            self.own.leave()

    def retried(self, attempt: Callable[[], _Result]) -> _Result:
        """A pass, made again as often as ranks are lost in it."""
        while True:
            try:
                self._restore()
                return attempt()
            except PassLostError as lost:
                if not self._missing:
                    self._missing = self._unreachable(lost.cause)

    def _restore(self) -> None:
        """Start again the ranks that were lost, as copies of this process."""
        while self._missing:
            missing, self._missing = self._missing, {}
            for rank, error in missing.items():
                _log.warning("%s; it is started again as a copy of rank 0", error)
                self._on_lost(rank)
                self._ranks.replace(rank, error)
            try:
                for rank, identity in self.on_ranks(dict.fromkeys(missing, ("identity", ()))).items():
                    self._check_identity(rank, identity)
                copy: Call = "adopt", (self.setting, self._engine.state(), self.updates)
                self.check_weights({0: self.own.fingerprint(), **self.on_ranks(dict.fromkeys(missing, copy))})
                self.own.join(self._ranks.connect())
            except PassLostError:
                self._missing = missing | self._missing
            except RankLostError as error:
                self._missing = missing | {error.number: error}
            except ReductionError as error:
                self._missing = self._unreachable(error)

    def _unreachable(self, error: Exception) -> dict[int, RankLostError]:
        """What to make of processes that are all there and do not reach each other: all are started again."""
        return {
            rank: RankLostError(f"{self._ranks.name(rank)} is out of reach: {error}", rank)
            for rank in range(1, self._ranks.count)
        }

    def check_weights(self, fingerprints: Mapping[int, str]) -> None:
        """Raise RankDriftError unless all ranks that hold the same have the same weights."""
        self.check_same(fingerprints, f"has other weights after update {self.updates}: fingerprint {{}}")

    def check_same(self, answers: Mapping[int, Any], told: str) -> None:
        """Raise RankDriftError unless ranks that hold the same answer alike, in words with a place for the answer."""
        for rank, answer in answers.items():
            first = rank % self._engine.shards
            if answer != answers[first]:
                who = self._ranks.name(rank)
                raise RankDriftError(f"{who} {told.format(answer)}, and rank {first} {answers[first]}")

    def _check_identity(self, number: int, identity: Mapping[str, str]) -> None:
        for what, own in self._identity.items():
            if identity.get(what) != own:
                raise RankMismatchError(
                    f"{self._ranks.name(number)} differs from rank 0 in {what}: {identity.get(what)!r}, "
                    f"expected {own!r}"
                )


class PassLostError(Exception):
    """Ranks were lost on the way; `answers` are those of the others."""

    def __init__(self, answers: dict[int, Any], cause: Exception) -> None:
        super().__init__(str(cause))
        self.answers, self.cause = answers, cause
