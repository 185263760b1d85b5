"""Gives the chunks of all requests to samplers and reward actors.

All of it happens in one thread of its own, so that sampling and scoring go on while the learner computes. The thread
owns every piece of state; others reach it by its inbox alone.
"""

from __future__ import annotations

import concurrent.futures
import logging
from collections import deque
from collections.abc import Mapping
from typing import Any

import ray

from prdp.cluster.actor_pool import ActorPool, LostError, Member, fetch_result, relay_warnings
from prdp.cluster.actor_supervisor import ActorSupervisor, Task
from prdp.cluster.base import ClusterError, acknowledged, check_rollout, describe_chunk
from prdp.cluster.chunk_products import Summary, remote_rows
from prdp.cluster.chunk_references import image_reference, is_lost, referring
from prdp.cluster.event_loop import EventLoop
from prdp.cluster.rollout_job import RolloutJob
from prdp.cluster.time_limits import TimeLimit
from prdp.cluster.weight_transport import WeightTransport
from prdp.types import Rollout

IN_FLIGHT = 2
"""Chunks handed to a sampler at a time: the next one waits at the actor, so that it never idles for a round trip."""

_log = logging.getLogger(__name__)


class Dispatcher:
    """Keeps the pools at work on the jobs, in the order in which they came.

    Args:
        samplers, rewards: the pools.
        retries: deaths borne in a row, of one actor or on one chunk, beyond the first.
        limits: how long each kind of work may take.
        transport: brings the jobs' weights to the samplers.
    """

    def __init__(
        self,
        samplers: ActorPool,
        rewards: ActorPool,
        retries: int,
        limits: Mapping[str, TimeLimit],
        transport: WeightTransport,
    ) -> None:
        self._samplers, self._rewards = samplers.members, rewards.members
        self._jobs: list[RolloutJob] = []
        self._to_score: deque[tuple[RolloutJob, int, Rollout]] = deque()
        self._failure: BaseException | None = None
        self._loop = EventLoop("prdp dispatcher", self._after_each, self._broken)
        self.supervisor = ActorSupervisor((samplers, rewards), self._loop, self, retries, limits)
        self._transport = transport
        transport.start(self._loop, self.supervisor.lost)

    def start(self) -> None:
        """Ask for every actor, without waiting for them."""
        self._loop.call(self.supervisor.launch_all)
        self._loop.start()

    def await_ready(self) -> None:
        """Wait until every actor is built.

        Raises:
            ClusterError: an actor keeps dying, or does not start within `cluster.start_timeout_seconds`.
            Exception: what a factory raised, as itself.
        """
        ready: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._loop.call(lambda: self.supervisor.await_all(ready))
        ready.result()

    def submit(self, job: RolloutJob, urgent: bool) -> None:
        """Put a job at the end of the queue, or at its head."""
        self._loop.call(lambda: self._enqueue(job, urgent))

    def score(self, job: RolloutJob) -> None:
        """Have the images that a job brings along scored, behind those that wait already."""
        self._loop.call(lambda: self._enqueue_images(job))

    def close(self) -> None:
        """End the thread and every actor."""
        self._loop.close()
        self.supervisor.kill_all()

    def on_answer(self, task: Task, answer: Any) -> None:
        """Take an actor's answer; see `TaskOwner`."""
        if task.kind == "bind":
            self._bound(task, answer)
        elif task.kind == "sample":
            self._sampled(task, answer)
        else:
            self._scored(task, answer)

    def on_input_lost(self, task: Task, error: LostError) -> None:
        """Have a chunk sampled again whose images are gone; see `TaskOwner`."""
        assert task.rollout is not None
        task.rollout = None if remote_rows(task.rollout) else task.rollout
        self._put_back(task)
        self._blame(task, error)

    def on_error(self, task: Task, error: Exception) -> None:
        """End the job whose work raised; see `TaskOwner`."""
        if task.kind == "bind":
            task.member.bound = None
        assert task.job is not None
        self._drop(task.job, error)

    def on_actor_lost(self, held: list[Task], error: LostError) -> None:
        """Have others do what a dead actor had: the same noise makes the same images; see `TaskOwner`."""
        for task in reversed(held):
            self._put_back(task)
        if held and error.at_work and _had_begun(held[0]):
            self._blame(held[0], error)

    def on_fatal(self, error: BaseException) -> None:
        """Fail everything that waits; see `TaskOwner`."""
        self.supervisor.give_up(error)
        waiting = [*self._jobs, *self.supervisor.jobs(), *(job for job, _, _ in self._to_score)]
        for job in {id(job): job for job in waiting}.values():
            self._drop(job, error)

    def _after_each(self) -> None:
        self._assign_chunks()
        self.supervisor.after_event()

    def _broken(self, error: BaseException) -> None:
        _log.error("the dispatcher of the Ray actors failed", exc_info=error)
        self.on_fatal(error)
        self._failure = error

    def _drop(self, job: RolloutJob, error: BaseException) -> None:
        job.fail(error)
        self._jobs = [other for other in self._jobs if other is not job]
        self._to_score = deque(entry for entry in self._to_score if entry[0] is not job)

    def _enqueue(self, job: RolloutJob, urgent: bool) -> None:
        if self._failure is not None:
            job.fail(self._failure)
        elif urgent:
            self._jobs.insert(0, job)
        else:
            self._jobs.append(job)

    def _enqueue_images(self, job: RolloutJob) -> None:
        if self._failure is not None:
            job.fail(self._failure)
        else:
            self._to_score.extend((job, index, job.builder.chunk(index)) for index in range(len(job.chunks)))

    def _assign_chunks(self) -> None:
        """Fill the samplers evenly: nobody gets a second chunk before everybody has one, or waits for weights only."""
        while self._to_score and (reward := self._least_busy()) is not None:
            job, index, rollout = self._to_score.popleft()
            self._score(reward, job, index, rollout)
        for depth in range(IN_FLIGHT):
            without_weights = False
            for member in self._samplers:
                if not self._jobs:
                    return
                if member.state != "ready" or self.supervisor.load(member) != depth:
                    continue
                if _holds(member, self._jobs[0]) or self._transport.ready_for(member, idle=depth == 0):
                    self._sample(member, self._jobs[0])
                elif depth == 0:
                    without_weights = True
            if without_weights:
                return

    def _sample(self, member: Member, job: RolloutJob) -> None:
        index = job.take()
        if not job.todo:
            self._jobs.remove(job)
        if not _holds(member, job):
            self.supervisor.ask(Task("bind", member, self._transport.deliver(member, job.weights), job))
            member.bound = job.published
        begun = member.handle.begin.remote()
        answer, *products = member.handle.sample.options(num_returns=4).remote(
            job.chunks[index], job.images_per_prompt, job.seed, job.trajectory, begun
        )
        self.supervisor.ask(Task("sample", member, answer, job, index, begun, tuple(products)))

    def _bound(self, task: Task, answer: Any) -> None:
        assert task.job is not None
        assert task.job.published is not None
        version, checksum, task.member.bind_seconds = answer
        acknowledged(task.job.published, task.member.name, (version, checksum))

    def _sampled(self, task: Task, summary: Summary) -> None:
        """Have the images scored, which stay in the object store as all arrays do."""
        job, member = task.job, task.member
        assert job is not None
        if job.failed:
            return
        rollout = referring(summary, task.products, job.request)
        check_rollout(rollout, job.chunks[task.index], job.images_per_prompt, job.published)
        if member.bind_seconds:
            rollout = rollout.took("bind", member.bind_seconds)
            member.bind_seconds = 0.0
        rollout = job.builder.add_chunk(task.index, rollout)
        job.sampled()
        if not job.scores:
            job.finish(rollout)
            return
        reward = self._least_busy()
        if reward is None:
            self._to_score.append((job, task.index, rollout))
        else:
            self._score(reward, job, task.index, rollout)

    def _score(self, member: Member, job: RolloutJob, index: int, rollout: Rollout) -> None:
        begun = member.handle.begin.remote()
        answer = member.handle.score.remote(image_reference(rollout), job.chunks[index], job.images_per_prompt, begun)
        self.supervisor.ask(Task("score", member, answer, job, index, begun, rollout=rollout))

    def _scored(self, task: Task, answer: Any) -> None:
        assert task.job is not None
        assert task.rollout is not None
        rewards, sub_scores, seconds, warnings = answer
        relay_warnings(task.member, warnings)
        if not task.job.failed:
            chunk = task.rollout.took("score", seconds)
            task.job.finish(task.job.builder.add_rewards(task.index, chunk, rewards, sub_scores))

    def _put_back(self, task: Task) -> None:
        assert task.job is not None
        if task.job.failed:
            return
        if task.rollout is not None and not is_lost(task.rollout):
            self._to_score.appendleft((task.job, task.index, task.rollout))
            return
        if not task.job.todo:
            self._jobs.insert(0, task.job)
        task.job.todo.appendleft(task.index)

    def _blame(self, task: Task, error: LostError) -> None:
        """Count a death on the chunk that was being worked on."""
        job, index, retries = task.job, task.index, self.supervisor.retries
        assert job is not None
        job.deaths[index] += 1
        if job.deaths[index] > retries and not job.failed:
            cause = ClusterError(
                f"{describe_chunk(job.chunks[index])}: {task.member.name} {error.fate} on this chunk, attempt "
                f"{job.deaths[index]} of {retries + 1} (cluster.retries={retries}): {error}"
            )
            cause.__cause__ = error
            self._drop(job, cause)
            task.member.failures = 0

    def _least_busy(self) -> Member | None:
        ready = [member for member in self._rewards if member.state == "ready"]
        return min(ready, key=self.supervisor.load, default=None)


def _had_begun(task: Task) -> bool:
    """Whether an actor died at work on a chunk, and not before: an idle one is not missed until it is asked."""
    if not ray.wait([task.begun], timeout=0)[0]:
        return False
    try:
        fetch_result(task.begun)
    except LostError:
        return False
    return True


def _holds(member: Member, job: RolloutJob) -> bool:
    """Whether a sampler has the weights that a job is to be done under, or will have by its turn."""
    return job.published is None or member.bound == job.published
