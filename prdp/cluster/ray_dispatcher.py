"""Who does which chunk: shares them out among samplers and reward actors, and has done again what a dead actor held.

All of it happens in one thread of its own, so that sampling and scoring go on while the learner computes. The thread
owns every piece of state; others reach it by its inbox alone.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import logging
import time
from collections import deque
from typing import Any

import ray

from prdp.cluster.base import ClusterError, acknowledged, back_off, check_rollout, place
from prdp.cluster.event_loop import EventLoop
from prdp.cluster.ray_crew import Crew, HungError, LostError, Member, kill, settle, tell
from prdp.cluster.ray_job import Job
from prdp.types import Rollout

IN_FLIGHT = 2
"""Chunks handed to a sampler at a time: the next one waits at the actor, so that it never idles for a round trip."""

_log = logging.getLogger(__name__)


@dataclasses.dataclass(eq=False)
class Task:
    """What an actor was asked for: 'build', 'bind', 'sample' or 'score'.

    Attributes:
        answer: the reference to wait for.
        products: of 'sample', references of the rollout and the images.
        rollout: of 'score', the one to be scored.
        started: of 'score', when it was first seen to have its turn, by the monotonic clock.
    """

    kind: str
    member: Member
    answer: Any
    job: Job | None = None
    index: int = -1
    products: tuple[Any, Any] | None = None
    rollout: Rollout | None = None
    started: float | None = None


class Dispatcher:
    """Keeps the crews at work on the jobs, in the order in which they came.

    Args:
        samplers, rewards: the crews; nobody else touches their members while the thread runs.
        retries: deaths borne in a row, of one actor or on one chunk, beyond the first.
        reward_timeout: seconds that a reward actor has for one chunk; None for no limit.
    """

    def __init__(self, samplers: Crew, rewards: Crew, retries: int, reward_timeout: float | None) -> None:
        self._samplers, self._rewards = samplers, rewards
        self.retries, self.reward_timeout = retries, reward_timeout
        self._jobs: list[Job] = []
        self._to_score: deque[tuple[Job, int, Rollout]] = deque()
        self._tasks: dict[Member, list[Task]] = {member: [] for member in self._everybody()}
        self._waiters: list[concurrent.futures.Future[None]] = []
        self._failure: BaseException | None = None
        self.last_fault: dict[str, Any] | None = None
        self._loop = EventLoop("prdp dispatcher", self._after_each, self._broken)

    def start(self) -> None:
        """Ask for every actor, without waiting for them."""
        self._loop.call(self._launch_all)
        self._loop.start()

    def await_ready(self, seconds: float) -> bool:
        """Wait until every actor is built; False when that takes longer.

        Raises:
            ClusterError: an actor keeps dying.
            Exception: what a factory raised, as itself.
        """
        ready: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._loop.call(lambda: self._waiters.append(ready))
        if not concurrent.futures.wait([ready], seconds).done:
            return False
        ready.result()
        return True

    def submit(self, job: Job, urgent: bool) -> None:
        """Put a job at the end of the queue, or at its head."""
        self._loop.call(lambda: self._enqueue(job, urgent))

    def close(self) -> None:
        """End the thread and every actor."""
        self._loop.close()
        for member in self._everybody():
            kill(member)

    def _everybody(self) -> list[Member]:
        return [*self._samplers.members, *self._rewards.members]

    def _after_each(self) -> None:
        self._hand_out()
        for member in self._rewards.members:
            self._check_hung(member)
        if self._waiters and all(member.state == "ready" for member in self._everybody()):
            for waiter in self._waiters:
                waiter.set_result(None)
            self._waiters = []

    def _broken(self, error: BaseException) -> None:
        _log.error("the dispatcher of the Ray actors failed", exc_info=error)
        self._fail_all(error)
        self._failure = error

    def _ask(self, task: Task) -> None:
        """Wait for the answer to a task without holding anybody up."""
        self._tasks[task.member].append(task)
        task.answer.future().add_done_callback(lambda _: self._loop.call(lambda: self._answered(task)))

    def _answered(self, task: Task) -> None:
        if task not in self._tasks[task.member]:
            return  # The actor was given up in the meantime, and its work given to others.
        try:
            answer = settle(task.answer)
            rollout = self._fetched(task) if task.kind == "sample" else None
        except LostError as error:
            self._lost(task.member, error)
            return
        except Exception as error:  # noqa: BLE001 - what the work raised belongs to whoever waits for it
            self._done(task)
            self._failed(task, error)
            return
        self._done(task)
        try:
            if task.kind == "build":
                self._built(task.member, answer)
            elif task.kind == "bind":
                self._bound(task, answer)
            elif rollout is not None:
                self._sampled(task, rollout)
            else:
                self._scored(task, answer)
        except Exception as error:  # noqa: BLE001 - as above
            self._failed(task, error)

    def _done(self, task: Task) -> None:
        self._tasks[task.member].remove(task)
        if task.kind in ("sample", "score"):
            task.member.failures = 0
            task.member.chunks += 1

    def _failed(self, task: Task, error: BaseException) -> None:
        """An error that an actor raised, or that its answer is: never tried again."""
        if task.kind == "bind":
            task.member.bound = None
        if task.job is None:
            self._fail_all(error)
        else:
            self._drop(task.job, error)

    def _drop(self, job: Job, error: BaseException) -> None:
        job.fail(error)
        self._jobs = [other for other in self._jobs if other is not job]
        self._to_score = deque(entry for entry in self._to_score if entry[0] is not job)

    def _fail_all(self, error: BaseException) -> None:
        for waiter in self._waiters:
            waiter.set_exception(error)
        self._waiters = []
        for job in {id(job): job for job in (*self._jobs, *self._held_jobs())}.values():
            self._drop(job, error)

    def _held_jobs(self) -> list[Job]:
        held = [task.job for tasks in self._tasks.values() for task in tasks] + [job for job, _, _ in self._to_score]
        return [job for job in held if job is not None]

    def _launch_all(self) -> None:
        for crew in (self._samplers, self._rewards):
            for member in crew.members:
                self._launch(crew, member)

    def _launch(self, crew: Crew, member: Member) -> None:
        self._ask(Task("build", member, crew.launch(member)))

    def _built(self, member: Member, answer: Any) -> None:
        self._crew(member).enter(member, answer)

    def _crew(self, member: Member) -> Crew:
        return self._samplers if member in self._samplers.members else self._rewards

    def _enqueue(self, job: Job, urgent: bool) -> None:
        if self._failure is not None:
            job.fail(self._failure)
        elif urgent:
            self._jobs.insert(0, job)
        else:
            self._jobs.append(job)

    def _hand_out(self) -> None:
        """Fill the samplers evenly: nobody gets a second chunk before everybody has one."""
        while self._to_score and (reward := self._least_busy()) is not None:
            job, index, rollout = self._to_score.popleft()
            self._ask(dataclasses.replace(self._ask_score(reward, job, index, rollout.images), rollout=rollout))
        for depth in range(IN_FLIGHT):
            for member in self._samplers.members:
                if not self._jobs:
                    return
                if member.state == "ready" and self._load(member) == depth:
                    self._sample(member, self._jobs[0])

    def _sample(self, member: Member, job: Job) -> None:
        index = job.take()
        if not job.todo:
            self._jobs.remove(job)
        if job.published is not None and member.bound != job.published:
            self._ask(Task("bind", member, member.handle.load_weights.remote(job.weights), job))
            member.bound = job.published
        answer, *products = member.handle.sample.options(num_returns=3).remote(
            job.chunks[index], job.images_per_prompt, job.seed, job.trajectory
        )
        self._ask(Task("sample", member, answer, job, index, (products[0], products[1])))

    def _bound(self, task: Task, answer: Any) -> None:
        assert task.job is not None
        assert task.job.published is not None
        version, checksum, task.member.bind_seconds = answer
        acknowledged(task.job.published, task.member.name, (version, checksum))

    def _fetched(self, task: Task) -> Rollout:
        """The rollout of a chunk, as it lies in the object store.

        Raises:
            LostError: it is gone with its node.
        """
        assert task.products is not None
        return dataclasses.replace(settle(task.products[0]), images=settle(task.products[1]))

    def _sampled(self, task: Task, rollout: Rollout) -> None:
        """Send the images on to be scored before copying the trajectories out of the object store."""
        job, member = task.job, task.member
        assert job is not None
        assert task.products is not None
        if job.failed:
            return
        check_rollout(rollout, job.chunks[task.index], job.images_per_prompt, job.published)
        if member.bind_seconds:
            rollout = rollout.took("bind", member.bind_seconds)
            member.bind_seconds = 0.0
        reward = self._least_busy()
        scoring = None if reward is None else self._ask_score(reward, job, task.index, task.products[1])
        rollout = job.assembly.place(task.index, rollout)
        if scoring is None:
            self._to_score.append((job, task.index, rollout))
        else:
            self._ask(dataclasses.replace(scoring, rollout=rollout))

    def _ask_score(self, member: Member, job: Job, index: int, images: Any) -> Task:
        answer = member.handle.score.remote(images, job.chunks[index], job.images_per_prompt)
        return Task("score", member, answer, job, index)

    def _scored(self, task: Task, answer: Any) -> None:
        assert task.job is not None
        assert task.rollout is not None
        rewards, sub_scores, seconds, messages = answer
        tell(task.member, messages)
        if not task.job.failed:
            chunk = task.rollout.took("score", seconds)
            task.job.finish(task.job.assembly.score(task.index, chunk, rewards, sub_scores))

    def _lost(self, member: Member, error: LostError) -> None:
        """Replace an actor and give everything it held to be done again; the same noise makes the same images."""
        kill(member)
        member.state = "waiting"
        member.failures += 1
        member.restarts += 1
        fault = f"{member.name} {error.fate} and is restarted: {error}"
        _log.warning("%s", fault)
        self.last_fault = {"time": time.time(), "text": fault}
        held = [task for task in self._tasks[member] if task.kind in ("sample", "score")]
        self._tasks[member] = []
        for task in reversed(held):
            self._give_back(task)
        if held:
            # An actor works in the order of handing out: the others it held only waited for their turn.
            self._blame(held[0], error)
        if member.failures > self.retries:
            cause = f"{member.name} {error.fate} {member.failures} times in a row (cluster.retries={self.retries}): "
            self._fail_all(ClusterError(f"{cause}{error}"))
            member.failures = 0
        pause = back_off(member.failures - 1) if member.failures > 1 else 0.0
        self._loop.after(pause, lambda: self._launch(self._crew(member), member))

    def _give_back(self, task: Task) -> None:
        assert task.job is not None
        if task.job.failed:
            return
        if task.rollout is not None:
            self._to_score.appendleft((task.job, task.index, task.rollout))
            return
        if not task.job.todo:
            self._jobs.insert(0, task.job)
        task.job.todo.appendleft(task.index)

    def _blame(self, task: Task, error: LostError) -> None:
        """Count a death on the chunk that was being worked on."""
        job, index = task.job, task.index
        assert job is not None
        job.deaths[index] += 1
        if job.deaths[index] > self.retries and not job.failed:
            cause = ClusterError(
                f"{place(job.chunks[index])}: {task.member.name} {error.fate} on this chunk, attempt "
                f"{job.deaths[index]} of {self.retries + 1} (cluster.retries={self.retries}): {error}"
            )
            cause.__cause__ = error
            self._drop(job, cause)
            task.member.failures = 0

    def _check_hung(self, member: Member) -> None:
        """Give up a reward actor that had its first chunk for too long; look again when it may have."""
        turn = next((task for task in self._tasks[member] if task.kind == "score"), None)
        if self.reward_timeout is None or turn is None:
            return
        now = time.monotonic()
        if turn.started is None:
            turn.started = now
            self._loop.after(self.reward_timeout, lambda: None)
        elif now >= turn.started + self.reward_timeout and not ray.wait([turn.answer], timeout=0)[0]:
            self._lost(member, HungError(f"no answer within cluster.reward_timeout_seconds={self.reward_timeout:g}"))

    def _load(self, member: Member) -> int:
        return sum(task.kind in ("sample", "score") for task in self._tasks[member])

    def _least_busy(self) -> Member | None:
        ready = [member for member in self._rewards.members if member.state == "ready"]
        return min(ready, key=self._load, default=None)

