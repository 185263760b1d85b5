"""Sharing out the chunks of one rollout among samplers and reward actors, and doing again what a dead actor held."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from typing import Any

import numpy as np
import ray

from prdp.cluster.base import ClusterError, OnChunk, check_rollout, place
from prdp.cluster.ray_crew import Crew, HungError, LostError, Member, kill, settle, tell
from prdp.types import PromptBatch, Rollout, Weights

IN_FLIGHT = 2
"""Chunks handed to a sampler at a time: the next one waits at the actor, so that it never idles for a round trip."""


@dataclasses.dataclass
class Task:
    """A chunk at an actor: being sampled while `rollout` is None, being scored after.

    `started` is when the chunk was first seen to have its turn at the reward actor, by the monotonic clock.
    """

    member: Member
    index: int
    images: Any = None
    rollout: Rollout | None = None
    started: float | None = None


class Round:
    """One call of `RayWorkforce.sample`: which chunk is where.

    Args:
        samplers, rewards: the crews that do the work.
        weights: what every rollout has to be made by; any, when None.
        chunks: the units of work.
        images_per_prompt, seed, trajectory, on_chunk: as for `Workforce.sample`.
        reward_timeout: seconds that a reward actor has for one chunk; None for no limit.
    """

    def __init__(
        self,
        samplers: Crew,
        rewards: Crew,
        weights: Weights | None,
        chunks: list[PromptBatch],
        *,
        images_per_prompt: int,
        seed: int,
        trajectory: bool,
        on_chunk: OnChunk | None,
        reward_timeout: float | None = None,
    ) -> None:
        self._samplers, self._rewards, self._weights = samplers, rewards, weights
        self._chunks, self._on_chunk = chunks, on_chunk
        self._images_per_prompt, self._seed, self._trajectory = images_per_prompt, seed, trajectory
        self._reward_timeout = reward_timeout
        self._pending = deque(range(len(chunks)))
        self._deaths = [0] * len(chunks)
        self._running: dict[Any, Task] = {}
        self._finished: list[Rollout] = []

    def run(self) -> list[Rollout]:
        """Work until every chunk is sampled and scored."""
        while len(self._finished) < len(self._chunks):
            self._hand_out()
            reference = self._next()
            if reference is None:
                continue
            task = self._running[reference]
            try:
                if task.rollout is None:
                    self._take_sampled(reference, task)
                else:
                    self._take_scored(reference, task, task.rollout)
            except LostError as error:
                self._recover(task, error)
        return self._finished

    def _next(self) -> Any:
        """The reference of a task that is done, or None after reward actors that hang were replaced."""
        hung, patience = self._hung()
        for task in hung:
            self._recover(task, HungError(f"no answer within cluster.reward_timeout_seconds={self._reward_timeout:g}"))
        if hung:
            return None
        ready, _ = ray.wait(list(self._running), num_returns=1, timeout=patience, fetch_local=False)
        return ready[0] if ready else None

    def _hung(self) -> tuple[list[Task], float | None]:
        """Tasks that a reward actor has had for too long, and the seconds until the next one may be; None for ever."""
        if self._reward_timeout is None:
            return [], None
        now = time.monotonic()
        turns: dict[str, tuple[Any, Task]] = {}
        for reference, task in self._running.items():
            if task.rollout is not None:
                turns.setdefault(task.member.name, (reference, task))  # Actors work in the order of handing out.
        hung, patience = [], self._reward_timeout
        for reference, task in turns.values():
            task.started = now if task.started is None else task.started
            left = task.started + self._reward_timeout - now
            if left > 0:
                patience = min(patience, left)
            elif not ray.wait([reference], timeout=0, fetch_local=False)[0]:
                hung.append(task)
        return hung, patience

    def _hand_out(self) -> None:
        """Fill the samplers evenly: nobody gets a second chunk before everybody has one."""
        for depth in range(IN_FLIGHT):
            for member in self._samplers.members:
                if self._pending and self._load(member) == depth:
                    index = self._pending.popleft()
                    rollout, images = member.handle.sample.options(num_returns=2).remote(
                        self._chunks[index], self._images_per_prompt, self._seed, self._trajectory
                    )
                    self._running[rollout] = Task(member, index, images)

    def _take_sampled(self, reference: Any, task: Task) -> None:
        """Send the images on to be scored before copying the trajectories out of the object store."""
        chunk = self._chunks[task.index]
        rollout = dataclasses.replace(settle(reference), images=settle(task.images))
        check_rollout(rollout, chunk, self._images_per_prompt, self._weights)
        del self._running[reference]
        self._score(task.index, task.images, rollout)

    def _score(self, index: int, images: Any, rollout: Rollout) -> None:
        member = min(self._rewards.members, key=self._load)
        reference = member.handle.score.remote(images, self._chunks[index], self._images_per_prompt)
        self._running[reference] = Task(member, index, rollout=_own(rollout))

    def _take_scored(self, reference: Any, task: Task, rollout: Rollout) -> None:
        rewards, sub_scores, seconds, messages = settle(reference)
        tell(task.member, messages)
        del self._running[reference]
        scored = rollout.scored(
            np.array(rewards), {name: np.array(values) for name, values in sub_scores.items()}, seconds
        )
        self._finished.append(scored)
        if self._on_chunk is not None:
            self._on_chunk(scored)

    def _recover(self, failed: Task, error: LostError) -> None:
        """Replace the actor and give everything it held to be done again; the same noise makes the same images."""
        held = {reference: task for reference, task in self._running.items() if task.member is failed.member}
        for reference in held:
            del self._running[reference]
        # An actor works in the order of handing out: the others it held only waited for their turn.
        worked_on = next(iter(held.values())).index
        self._deaths[worked_on] += 1
        retries = self._samplers.retries
        if self._deaths[worked_on] > retries:
            kill(failed.member)
            raise ClusterError(
                f"{place(self._chunks[worked_on])}: {failed.member.name} {error.fate} on this chunk, attempt "
                f"{self._deaths[worked_on]} of {retries + 1} (cluster.retries={retries}): {error}"
            ) from error
        if failed.rollout is None:
            self._samplers.replace(failed.member, error)
            self._pending.extendleft(sorted((task.index for task in held.values()), reverse=True))
            return
        self._rewards.replace(failed.member, error)
        for task in held.values():
            assert task.rollout is not None
            self._score(task.index, task.rollout.images, task.rollout)

    def _load(self, member: Member) -> int:
        return sum(task.member is member for task in self._running.values())


def _own(rollout: Rollout) -> Rollout:
    """Copies of every array: what lies in the object store is read-only and would fill it up while it is held."""
    arrays: dict[str, Any] = {
        field.name: np.array(value)
        for field in dataclasses.fields(rollout)
        if isinstance(value := getattr(rollout, field.name), np.ndarray)
    }
    return dataclasses.replace(rollout, **arrays)
