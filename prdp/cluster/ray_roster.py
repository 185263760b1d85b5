"""Who is there: starts the actors, waits for their answers, and starts those again that die or hang."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import logging
import time
from typing import Any, Protocol

import ray

from prdp.cluster.base import ClusterError, back_off
from prdp.cluster.event_loop import EventLoop
from prdp.cluster.ray_crew import Crew, HungError, LostError, Member, kill, settle
from prdp.cluster.ray_job import Job
from prdp.cluster.ray_session import free_resources
from prdp.types import Rollout

_log = logging.getLogger(__name__)

_WAITING_SECONDS = 30.0
_WORK = ("sample", "score")


@dataclasses.dataclass(eq=False)
class Task:
    """What an actor was asked for: 'build', 'bind', 'sample' or 'score'.

    Attributes:
        answer: the reference to wait for.
        begun: of 'sample' and 'score', the reference that is answered when it has its turn.
        products: of 'sample', references of the rollout and the images.
        rollout: of 'score', the one to be scored.
        started: of 'score', when it was first seen to have its turn, by the monotonic clock.
    """

    kind: str
    member: Member
    answer: Any
    job: Job | None = None
    index: int = -1
    begun: Any = None
    products: tuple[Any, Any] | None = None
    rollout: Rollout | None = None
    started: float | None = None


class Owner(Protocol):
    """Whose work the actors do; everything is called in the loop's thread."""

    def answered(self, task: Task, answer: Any) -> None:
        """A piece of work is done. May raise `LostError` when its products are gone."""
        ...

    def raised(self, task: Task, error: Exception) -> None:
        """The actor raised, or its answer was refused: not a matter of trying again."""
        ...

    def given_back(self, held: list[Task], error: LostError) -> None:
        """An actor is gone with what it had; if it was at work, then on the first, and the others waited."""
        ...

    def hopeless(self, error: Exception) -> None:
        """No actor will do any more work."""
        ...


class Roster:
    """The crews, and what each of their members was asked for.

    Args:
        crews: nobody else touches their members while the loop runs.
        loop: everything here happens in its thread.
        owner: gets answers, errors and what was held by the dead.
        retries: deaths of an actor that are borne in a row, beyond the first.
        reward_timeout: seconds that a reward actor has for one chunk; None for no limit.
    """

    def __init__(
        self, crews: tuple[Crew, ...], loop: EventLoop, owner: Owner, retries: int, reward_timeout: float | None
    ) -> None:
        self._crews, self._loop, self._owner = crews, loop, owner
        self.retries, self.reward_timeout = retries, reward_timeout
        self._tasks: dict[Member, list[Task]] = {member: [] for crew in crews for member in crew.members}
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
        task.answer.future().add_done_callback(lambda _: self._loop.call(lambda: self._settle(task)))

    def load(self, member: Member) -> int:
        """Chunks that an actor has."""
        return sum(task.kind in _WORK for task in self._tasks[member])

    def jobs(self) -> list[Job]:
        """Whose chunks are at some actor."""
        return [task.job for tasks in self._tasks.values() for task in tasks if task.job is not None]

    def look_after(self) -> None:
        """What is to be done after every event: replace who hangs, tell who waits for everybody."""
        for member in self._tasks:
            self._check_hung(member)
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
        member.state = "waiting"
        member.failures += 1
        member.restarts += 1
        fault = f"{member.name} {error.fate} and is restarted: {error}"
        _log.warning("%s", fault)
        self.last_fault = {"time": time.time(), "text": fault}
        held = [task for task in self._tasks[member] if task.kind in _WORK]
        self._tasks[member] = []
        self._owner.given_back(held, error)
        if member.failures > self.retries:
            cause = f"{member.name} {error.fate} {member.failures} times in a row (cluster.retries={self.retries}): "
            self._owner.hopeless(ClusterError(f"{cause}{error}"))
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

    def _crew(self, member: Member) -> Crew:
        return next(crew for crew in self._crews if member in crew.members)

    def _launch(self, member: Member) -> None:
        task = Task("build", member, self._crew(member).launch(member))
        self.ask(task)
        self._loop.after(_WAITING_SECONDS, lambda: self._check_started(task, _WAITING_SECONDS))

    def _check_started(self, task: Task, waited: float) -> None:
        """Say that an actor takes long to start; give up when the time is over and nobody of its kind is there."""
        if task not in self._tasks[task.member]:
            return
        crew, free = self._crew(task.member), free_resources()
        doing = "; its environment is installed first" if crew.installs else ""
        _log.warning("still waiting for %s to start; free in the cluster: %s%s", task.member.name, free, doing)
        alone = bool(self._waiters) or all(member.state != "ready" for member in crew.members)
        if waited >= crew.start_timeout and alone and not crew.installs:
            self._owner.hopeless(
                ClusterError(
                    f"{task.member.name} did not start within cluster.start_timeout_seconds={crew.start_timeout:g}; "
                    f"free in the cluster: {free}"
                )
            )
            return
        self._loop.after(_WAITING_SECONDS, lambda: self._check_started(task, waited + _WAITING_SECONDS))

    def _settle(self, task: Task) -> None:
        if task not in self._tasks[task.member]:
            return  # The actor was given up in the meantime, and its work given to others.
        member = task.member
        try:
            answer = settle(task.answer)
            if task.kind == "build":
                self._crew(member).enter(member, answer)
            else:
                self._owner.answered(task, answer)
        except LostError as error:
            self.lost(member, error)
            return
        except Exception as error:  # noqa: BLE001 - what the work raised belongs to whoever waits for it
            self._tasks[member].remove(task)
            if task.kind == "build":
                self._owner.hopeless(error)
            else:
                self._owner.raised(task, error)
            return
        self._tasks[member].remove(task)
        if task.kind in _WORK:
            member.failures = 0
            member.chunks += 1

    def _check_hung(self, member: Member) -> None:
        """Give up an actor that had its first chunk for too long; look again when it may have."""
        turn = next((task for task in self._tasks[member] if task.kind == "score"), None)
        if self.reward_timeout is None or turn is None:
            return
        now = time.monotonic()
        if turn.started is None:
            turn.started = now
            self._loop.after(self.reward_timeout, lambda: None)
        elif now >= turn.started + self.reward_timeout and not ray.wait([turn.answer], timeout=0)[0]:
            self.lost(member, HungError(f"no answer within cluster.reward_timeout_seconds={self.reward_timeout:g}"))
