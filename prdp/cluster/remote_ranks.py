"""A learner's ranks in other processes: how long they may take, and what happens when they are lost."""

from __future__ import annotations

import logging
import pickle
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from prdp.cluster.base import ClusterError, back_off
from prdp.cluster.direct_weights import Rendezvous, open_store
from prdp.cluster.environment import import_paths
from prdp.cluster.gradient_group import GradientGroup
from prdp.cluster.shard_group import ShardGroup, join_ranks
from prdp.cluster.threads import planned_threads
from prdp.cluster.time_limits import TimeLimit, WorkStatus
from prdp.config import ClusterConfig
from prdp.support.rank_errors import RankLostError

_log = logging.getLogger(__name__)

RankFactory = Callable[[], Any]
_KEY = "cluster.learner_timeout_seconds"
_LOOK_SECONDS = 5.0
"""How often the clock is looked at; a longer gap is a pause of this process, not of theirs."""
_GAP_SECONDS = 1.0
_DOING = {
    "build": "starting",
    "take": "taking its part of a rollout",
    "evidence": "computing evidence",
    **dict.fromkeys(("accumulate", "begin", "go_on"), "computing gradients"),
    "meet": "meeting the other ranks",
    "reduce": "summing gradients",
    **dict.fromkeys(("stage", "write_part", "part_written", "staged_rows"), "writing its part of a checkpoint"),
    **dict.fromkeys(("rest", "wake"), "moving its tensors between host and device"),
    "load_part": "reading its part of a checkpoint",
}


class Waiting(Protocol):
    """An answer on its way, as the transport has it."""

    def wait(self, seconds: float) -> Any:
        """The answer.

        Raises:
            StillWaitingError: it is not there after so many seconds.
            RankLostError: the process is gone.
            Exception: what the rank raised, as itself.
        """
        ...


class StillWaitingError(Exception):
    """There is no answer yet."""


@dataclass(frozen=True)
class PendingAnswer:
    """See `prdp.learners.replicas.Answer`."""

    ranks: RemoteRanks
    number: int
    method: str
    units: int
    waiting: Waiting

    def result(self) -> Any:
        """Wait for it, as long as such work may take; see `Answer.result`."""
        return self.ranks.await_answer(self)


class RemoteRanks(ABC):
    """See `prdp.learners.replicas.Ranks`; subclasses start and end processes, and carry calls.

    Args:
        config: the `cluster` section; `learners` says how many ranks there are, rank 0 included.
        factories: picklable and without arguments; that of each rank but rank 0.
        backend: 'gloo' or 'nccl'.
        host: address of this node, where the ranks meet.
    """

    def __init__(self, config: ClusterConfig, factories: Sequence[RankFactory], backend: str, host: str) -> None:
        self.count = config.learners
        self.threads = planned_threads(config)
        self._config, self._backend, self._host = config, backend, host
        self._factories = [pickle.dumps(factory) for factory in factories]
        self._limits: dict[str, TimeLimit] = {}
        self._done: set[tuple[int, str]] = set()
        self._failures = dict.fromkeys(range(1, self.count), 0)
        self._building: dict[int, PendingAnswer] = {}
        self._places: dict[int, tuple[int, str]] = {}
        """Rank -> process id and node, once it is built."""
        self._work: dict[int, WorkStatus] = {}
        self._restarts = dict.fromkeys(range(1, self.count), 0)
        self._shares = dict.fromkeys(range(1, self.count), 0)
        self.last_fault: dict[str, Any] | None = None
        self._store: Any = None
        self._meetings = 0
        self._group: GradientGroup | ShardGroup | None = None

    def start_all(self) -> None:
        """Start every rank without waiting for any."""
        for number in range(1, self.count):
            self._begin(number)

    def ask(self, number: int, method: str, *arguments: Any, units: int = 1) -> PendingAnswer:
        """Call a method of a rank without waiting; calls of one rank are served in order."""
        limit, first = self._limit(method), (number, method) not in self._done
        warn, longest = limit.usual(units, first) / 2, limit.of(units, first)
        self._work[number] = WorkStatus(_DOING.get(method, "stepping"), time.time(), warn, longest)
        return PendingAnswer(self, number, method, units, self.send(number, method, arguments))

    def await_answer(self, answer: PendingAnswer) -> Any:
        """What a rank answers; it is ended when it takes too long.

        Raises:
            RankLostError: it died, or hung and was ended.
            Exception: what it raised, as itself.
        """
        building = self._building.pop(answer.number, None)
        if building is not None and building is not answer:
            pid, node, warnings = self._wait(building)
            self._places[answer.number] = pid, node
            for text in warnings:
                _log.warning("%s: %s", self.name(answer.number), text)
        return self._wait(answer)

    def connect(self) -> GradientGroup | ShardGroup:
        """Have all ranks meet in a new group.

        Raises:
            ReductionError: they did not come in time.
            RankLostError: a rank died on the way.
        """
        seconds = self._config.learner_timeout_seconds or self._config.weight_timeout_seconds
        if self._store is None:
            self._store = open_store(self._host, self._config.start_timeout_seconds)
        self._meetings += 1
        rendezvous = Rendezvous(self._host, self._store[1], f"ranks {self._meetings}", self._backend, seconds)
        sizes = self.count, self._config.fsdp_size
        answers = [self.ask(number, "meet", rendezvous, number, *sizes) for number in range(1, self.count)]
        self._group = join_ranks(rendezvous, 0, *sizes, self._host)
        for answer in answers:
            answer.result()
        return self._group

    def leave(self) -> None:
        """Have rank 0 leave what `connect` made, where that holds anything of the process."""
        if isinstance(self._group, ShardGroup):
            self._group.close()
        self._group = None

    def replace(self, number: int, error: RankLostError) -> None:
        """Start a lost rank again, after a pause that doubles when it is lost again before the next step.

        Raises:
            ClusterError: it was lost more often than `cluster.retries` allows.
        """
        self.kill(number)
        self.last_fault = {"time": time.time(), "text": f"{error}; it is started again"}
        self._restarts[number] += 1
        self._failures[number] += 1
        if self._failures[number] > self._config.retries:
            raise ClusterError(
                f"learner rank {number} was lost {self._failures[number]} times in a row "
                f"(cluster.retries={self._config.retries}): {error}"
            ) from error
        if self._failures[number] > 1:
            time.sleep(back_off(self._failures[number] - 1))
        self._done = {one for one in self._done if one[0] != number}
        self._begin(number)

    def progressed(self) -> None:
        """A step is done, so that earlier losses no longer count as in a row."""
        self._failures = dict.fromkeys(self._failures, 0)

    def name(self, number: int) -> str:
        """For people: 'learner rank 2 (process 123 on host)'."""
        place = self._places.get(number)
        return f"learner rank {number}" + ("" if place is None else f" (process {place[0]} on {place[1]})")

    def status(self) -> list[dict[str, Any]]:
        """What people want to know of each rank, as of the actors of a workforce; its chunks are shares of passes."""
        now, rows = time.time(), []
        for number in range(1, self.count):
            pid, node = self._places.get(number, (0, ""))
            work = self._work.get(number)
            facts = {
                "name": f"learner rank {number}",
                "kind": "learner rank",
                "node": node,
                "pid": pid,
                "state": "ready" if pid else "starting",
                "restarts": self._restarts[number],
                "chunks": self._shares[number],
            }
            rows.append(facts if work is None else {**facts, **work.status(now)})
        return rows

    @abstractmethod
    def start(self, number: int) -> None:
        """Start a process with a `RankHost`."""

    @abstractmethod
    def send(self, number: int, method: str, arguments: tuple[Any, ...]) -> Waiting:
        """Call a method of its `RankHost`."""

    @abstractmethod
    def kill(self, number: int) -> None:
        """End a process, if there is one, whatever it is doing."""

    @abstractmethod
    def close(self) -> None:
        """End all processes; closing twice is fine."""

    def _begin(self, number: int) -> None:
        self._places.pop(number, None)
        self.start(number)
        self._building[number] = self.ask(number, "build", self._factories[number - 1], import_paths(None))

    def _wait(self, answer: PendingAnswer) -> Any:
        number, method, units = answer.number, answer.method, answer.units
        limit = self._limit(method)
        longest = limit.of(units, first=(number, method) not in self._done)
        spent = 0.0
        while True:
            begun = time.monotonic()
            try:
                value = answer.waiting.wait(min(_LOOK_SECONDS, longest - spent))
            except StillWaitingError:
                spent += min(time.monotonic() - begun, _LOOK_SECONDS + _GAP_SECONDS)
                if spent < longest:
                    continue
                why = limit.explain(units, longest)
                lost = f"{self.name(number)} hung: no answer to '{method}' for {spent:.0f} s ({why})"
                self.kill(number)
                raise RankLostError(lost, number) from None
            spent += time.monotonic() - begun
            if (number, method) in self._done:
                limit.learn(spent, units)
            self._done.add((number, method))
            self._work.pop(number, None)
            self._shares[number] += method in ("evidence", "accumulate", "begin")
            return value

    def _limit(self, method: str) -> TimeLimit:
        """Of a kind of work; building may take as long as any actor may take to start."""
        if method not in self._limits:
            first = self._config.start_timeout_seconds
            key, seconds = _KEY, self._config.learner_timeout_seconds
            if method == "build":
                key, seconds = "cluster.start_timeout_seconds", first
            self._limits[method] = TimeLimit(key, seconds, first)
        return self._limits[method]
