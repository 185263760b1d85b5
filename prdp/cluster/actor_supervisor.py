"""Starts the actors, waits for their answers, and starts those again that die or hang."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import logging
import math
import time
from collections.abc import Mapping
from typing import Any, Protocol

import ray

from prdp.cluster.actor_pool import ActorPool, GoneError, HungError, LostError, Member, fetch_result, kill
from prdp.cluster.base import ClusterError, back_off, describe_chunk
from prdp.cluster.event_loop import EventLoop
from prdp.cluster.ray_session import free_resources
from prdp.cluster.rollout_job import RolloutJob
from prdp.cluster.time_limits import Clock, TimeLimit, WorkStatus
from prdp.types import Rollout

_log = logging.getLogger(__name__)

_WAITING_SECONDS = 30.0
_LOOK_SECONDS = 5.0
"""How often the clock is looked at while anybody is at work; a longer gap is a pause of this process, not of theirs."""
_GAP_SECONDS = 1.0
_WORK = ("sample", "score")
_DOING = {"build": "starting", "bind": "binding weights", "sample": "sampling", "score": "scoring"}


@dataclasses.dataclass(eq=False)
class Task:
    """What an actor was asked for: 'build', 'bind', 'sample' or 'score'.

    Attributes:
        answer: the reference to wait for.
        begun: of 'sample' and 'score', the reference that is answered when it has its turn; of 'build', when there is a
            process.
        products: of 'sample', references of what was made; see `prdp.cluster.chunk_products.split`.
        rollout: of 'score', the one to be scored.
        started: when it was first seen to have its turn, by the supervisor's clock.
        warned: that it takes long was said.
    """

    kind: str
    member: Member
    answer: Any
    job: RolloutJob | None = None
    index: int = -1
    begun: Any = None
    products: tuple[Any, ...] = ()
    rollout: Rollout | None = None
    started: float | None = None
    warned: bool = False

    @property
    def units(self) -> int:
        """Images of the chunk."""
        return (
            1 if self.job is None or self.index < 0 else len(self.job.chunks[self.index]) * self.job.images_per_prompt
        )

    @property
    def doing(self) -> str:
        """For people."""
        where = "" if self.job is None or self.index < 0 else f" {describe_chunk(self.job.chunks[self.index])}"
        return f"{_DOING[self.kind]}{where}"


class TaskOwner(Protocol):
    """Whose work the actors do; everything is called in the loop's thread."""

    def on_answer(self, task: Task, answer: Any) -> None:
        """A piece of work is done. May raise `LostError` when its products are gone."""
        ...

    def on_input_lost(self, task: Task, error: LostError) -> None:
        """The actor is there, and what it was to work on is gone."""
        ...

    def on_error(self, task: Task, error: Exception) -> None:
        """The actor raised, or its answer was refused: not a matter of trying again."""
        ...

    def on_actor_lost(self, held: list[Task], error: LostError) -> None:
        """An actor is gone with what it had; if it was at work, then on the first, and the others waited."""
        ...

    def on_fatal(self, error: Exception) -> None:
        """No actor will do any more work."""
        ...


class ActorSupervisor:
    """The pools, and what each of their members was asked for.

    Args:
        pools: nobody else touches their members while the loop runs.
        loop: everything here happens in its thread.
        owner: gets answers, errors and what was held by the dead.
        retries: deaths of an actor that are borne in a row, beyond the first.
        limits: of 'bind', 'sample' and 'score'.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        pools: tuple[ActorPool, ...],
        loop: EventLoop,
        owner: TaskOwner,
        retries: int,
        limits: Mapping[str, TimeLimit],
        clock: Clock = time.monotonic,
    ) -> None:
        self._pools, self._loop, self._owner = pools, loop, owner
        self.retries, self.limits = retries, limits
        self._clock, self._looked, self._now = clock, clock(), 0.0
        self._next_look = math.inf
        self._touched: set[Member] = set()
        self._due: dict[Member, float] = {}
        """When a member is to be looked at next, where nothing is heard of it before."""
        self._next_round = 0.0
        self._tasks: dict[Member, list[Task]] = {member: [] for pool in pools for member in pool.members}
        self._waiters: list[concurrent.futures.Future[None]] = []
        self.last_fault: dict[str, Any] | None = None

    def launch_all(self) -> None:
        """Ask for every actor."""
        for member in self._tasks:
            self._launch(member)

    def await_all(self, waiter: concurrent.futures.Future[None]) -> None:
        """Have a future set when every actor is ready, or none ever will be."""
        self._waiters.append(waiter)

    def ask(self, task: Task) -> None:
        """Wait for the answer to a task without holding anybody up."""
        self._tasks[task.member].append(task)
        self._touched.add(task.member)
        task.answer.future().add_done_callback(lambda _: self._loop.call(lambda: self._on_done(task)))

    def load(self, member: Member) -> int:
        """Chunks that an actor has."""
        return sum(task.kind in _WORK for task in self._tasks[member])

    def jobs(self) -> list[RolloutJob]:
        """Whose chunks are at some actor."""
        return [task.job for tasks in self._tasks.values() for task in tasks if task.job is not None]

    def after_event(self) -> None:
        """What is to be done after every event: replace who hangs, tell who waits for everybody."""
        self._pass_time()
        due = self._check_members()
        self._look_again(min(due, self._now + _LOOK_SECONDS) if self._at_work() else math.inf)
        if self._waiters and all(member.state == "ready" for member in self._tasks):
            self._tell_waiters(None)

    def give_up(self, error: BaseException) -> None:
        """Tell who waits for everybody that it is in vain."""
        self._tell_waiters(error)

    def kill_all(self) -> None:
        """End every actor."""
        for member in self._tasks:
            kill(member)

    def lost(self, member: Member, error: LostError) -> None:
        """Give everything an actor had to be done by others, and start it again after a pause."""
        kill(member)
        member.state, member.work = "waiting", None
        member.failures += 1
        member.restarts += 1
        fault = f"{member.name} {error.fate} and is restarted: {error}"
        _log.warning("%s", fault)
        self.last_fault = {"time": time.time(), "text": fault}
        held = [task for task in self._tasks[member] if task.kind in _WORK]
        self._tasks[member] = []
        self._touched.add(member)
        self._owner.on_actor_lost(held, error)
        if member.failures > self.retries:
            cause = f"{member.name} {error.fate} {member.failures} times in a row (cluster.retries={self.retries}): "
            self._owner.on_fatal(ClusterError(f"{cause}{error}"))
            member.failures = 0
        pause = back_off(member.failures - 1) if member.failures > 1 else 0.0
        self._loop.after(pause, lambda: self._launch(member))

    def _tell_waiters(self, error: BaseException | None) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(error)

    def _pool_of(self, member: Member) -> ActorPool:
        return next(pool for pool in self._pools if member in pool.members)

    def _launch(self, member: Member) -> None:
        begun, answer = self._pool_of(member).launch(member)
        task = Task("build", member, answer, begun=begun)
        self.ask(task)
        self._loop.after(_WAITING_SECONDS, lambda: self._check_started(task, _WAITING_SECONDS))

    def _check_started(self, task: Task, waited: float) -> None:
        """Say that an actor takes long to start; give up when the time is over and nobody of its kind is there."""
        if task not in self._tasks[task.member]:
            return
        pool, free = self._pool_of(task.member), free_resources()
        doing = "; its environment is installed first" if pool.installs else ""
        _log.warning("still waiting for %s to start; free in the cluster: %s%s", task.member.name, free, doing)
        if waited >= pool.start_timeout and self._needed(pool) and not pool.installs:
            self._never_started(task, free)
            return
        self._loop.after(_WAITING_SECONDS, lambda: self._check_started(task, waited + _WAITING_SECONDS))

    def _needed(self, pool: ActorPool) -> bool:
        """Whether nothing can go on without a member that is to start."""
        return bool(self._waiters) or all(member.state != "ready" for member in pool.members)

    def _never_started(self, task: Task, free: str) -> None:
        seconds = self._pool_of(task.member).start_timeout
        self._owner.on_fatal(
            ClusterError(
                f"{task.member.name} did not start within cluster.start_timeout_seconds={seconds:g}; "
                f"free in the cluster: {free}"
            )
        )

    def _on_done(self, task: Task) -> None:
        if task not in self._tasks[task.member]:
            return  # The actor was given up in the meantime, and its work given to others.
        member = task.member
        self._touched.add(member)
        try:
            answer = fetch_result(task.answer)
            if task.kind == "build":
                self._pool_of(member).admit(member, answer)
            else:
                self._owner.on_answer(task, answer)
        except LostError as error:
            if isinstance(error, GoneError) and task.kind == "score":
                self._tasks[member].remove(task)
                self._owner.on_input_lost(task, error)
            else:
                self.lost(member, error)
            return
        except Exception as error:  # noqa: BLE001 - what the work raised belongs to whoever waits for it
            self._tasks[member].remove(task)
            if task.kind == "build":
                self._owner.on_fatal(error)
            else:
                self._owner.on_error(task, error)
            return
        self._tasks[member].remove(task)
        self._learn(task)
        if task.kind in _WORK:
            member.failures = 0
            member.chunks += 1

    def _learn(self, task: Task) -> None:
        """Take note of how long a finished piece of work took."""
        done = task.member.done
        if task.kind in done and task.started is not None:
            self._pass_time()
            self.limits[task.kind].learn(self._now - task.started, task.units)
        if task.kind in self.limits:
            done.add(task.kind)

    def _pass_time(self) -> None:
        """Advance the supervisor's clock, which leaves out the time in which this process itself stood still."""
        now = self._clock()
        self._now += min(now - self._looked, _LOOK_SECONDS + _GAP_SECONDS)
        self._looked = now

    def _at_work(self) -> bool:
        return any(self._tasks.values())

    def _look_again(self, due: float) -> None:
        """Have the loop wake up when it is due, unless it will before."""
        if self._now >= self._next_look:
            self._next_look = math.inf
        if due < self._next_look:
            self._next_look = due
            self._loop.after(max(due - self._now, 0.0), lambda: None)

    def _check_members(self) -> float:
        """Look at those of whom something was heard, or whose time has come, now and then at all; when to look again.

        An event is mostly about one of many: to look at all would cost more than all else that is done for a chunk.
        """
        if self._now >= self._next_round:
            self._touched.update(self._tasks)
            self._next_round = self._now + _LOOK_SECONDS
        self._touched.update(member for member, due in self._due.items() if due <= self._now)
        members, self._touched = self._touched, set()
        for member in members:
            self._due[member] = self._check_hung(member)
        return min(self._due.values(), default=math.inf)

    def _check_hung(self, member: Member) -> float:
        """Say who has had its turn for long, and give up who had it for too long; when to look again."""
        task = next(iter(self._tasks[member]), None)
        if task is None or (task.kind == "build" and not _answered(task.begun)):
            member.work = None
            return math.inf
        if task.started is None:
            task.started = self._now
        limit, warn = self._limit(task)
        begun, spent = task.started, self._now - task.started
        if member.work is None or (member.work.doing, member.work.limit_seconds) != (task.doing, limit):
            member.work = WorkStatus(task.doing, time.time() - spent, warn, limit)
        if spent >= limit and not _answered(task.answer):
            self._hung(task, limit)
            return math.inf
        if spent >= warn and not task.warned:
            task.warned = True
            over = f"; it is replaced after {limit:.0f} s" if math.isfinite(limit) else ""
            _log.warning("%s has been %s for %.0f s without an answer%s", member.name, task.doing, spent, over)
        return begun + (limit if task.warned else min(warn, limit))

    def _limit(self, task: Task) -> tuple[float, float]:
        """Seconds that a task may take, and seconds after which it is worth a word."""
        if task.kind == "build":
            seconds = self._pool_of(task.member).start_timeout
            return seconds, seconds / 2
        limit, member, extra = self.limits[task.kind], task.member, 0.0
        first, attempts = task.kind not in member.done, 0
        if task.kind == "score":
            extra = member.waits
        if task.job is not None and task.index >= 0:
            attempts = task.job.deaths[task.index]
        seconds = limit.of(task.units, first, extra, attempts)
        return seconds, min(seconds, limit.usual(task.units, first, extra)) / 2

    def _hung(self, task: Task, limit: float) -> None:
        pool = self._pool_of(task.member)
        if task.kind != "build":
            told = self.limits[task.kind].explain(task.units, limit)
            self.lost(task.member, HungError(f"{task.doing}: no answer within {told}"))
        elif self._needed(pool):
            self._tasks[task.member].remove(task)
            self._never_started(task, free_resources())
        else:
            told = f"cluster.start_timeout_seconds={pool.start_timeout:g}"
            self.lost(task.member, HungError(f"it did not start within {told}"))


def _answered(reference: Any) -> bool:
    return bool(ray.wait([reference], timeout=0)[0])
