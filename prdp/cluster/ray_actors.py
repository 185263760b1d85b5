"""The plain classes as Ray actors, and the crews that start, watch and replace them."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import RayError, RayTaskError

from prdp.cluster.base import ClusterError, RewardLike, SamplerLike, place, sampled
from prdp.cluster.ray_session import Demand, free_resources
from prdp.cluster.threads import PATIENCE, thread_environment
from prdp.types import Float64, PromptBatch, Rollout, UInt8, Weights

_log = logging.getLogger(__name__)

_WAITING_SECONDS = 30.0


class LostError(Exception):
    """The actor, its node or its result is gone; the work itself may be fine elsewhere."""


class SamplerActor:
    """A sampler in its own process; built by `build`, so that what building raises can be told apart from a death."""

    def __init__(self, name: str, threads: int) -> None:
        self._name, self._threads = name, threads
        self._sampler: SamplerLike | None = None

    def build(self, factory: bytes) -> int:
        """Build the sampler from its pickled factory; answers the process id."""
        with _errors_of(self._name):
            self._sampler = cloudpickle.loads(factory)()
            _hold_torch_to(self._threads)
        return os.getpid()

    def load_weights(self, weights: Weights) -> tuple[int, str]:
        """Bind the weights; answers (version, checksum) as bound."""
        assert self._sampler is not None
        with _errors_of(self._name):
            return self._sampler.load_weights(weights)

    def sample(self, chunk: PromptBatch, images_per_prompt: int, seed: int, trajectory: bool) -> tuple[Rollout, UInt8]:
        """The rollout without its images, and the images: two objects, so that scoring never moves trajectories."""
        assert self._sampler is not None
        with _errors_of(f"{self._name}, {place(chunk)}"):
            rollout = sampled(self._sampler, chunk, images_per_prompt, seed, trajectory)
            return dataclasses.replace(rollout, images=rollout.images[:0]), rollout.images


class RewardActor:
    """A reward worker in its own process."""

    def __init__(self, name: str, threads: int) -> None:
        self._name, self._threads = name, threads
        self._reward: RewardLike | None = None

    def build(self, factory: bytes) -> int:
        """Build the reward worker from its pickled factory; answers the process id."""
        with _errors_of(self._name):
            self._reward = cloudpickle.loads(factory)()
            _hold_torch_to(self._threads)
        return os.getpid()

    def score(
        self, images: UInt8, chunk: PromptBatch, images_per_prompt: int
    ) -> tuple[Float64, dict[str, Float64], float]:
        """Rewards, sub-scores and the seconds they took, for the images of a chunk."""
        assert self._reward is not None
        prompts = [text for text in chunk.texts for _ in range(images_per_prompt)]
        metadata = [meta for meta in chunk.metadata for _ in range(images_per_prompt)]
        with _errors_of(f"{self._name}, {place(chunk)}"):
            start = time.perf_counter()
            rewards, sub_scores = self._reward.score(images, prompts, metadata, place(chunk))
            return rewards, sub_scores, time.perf_counter() - start


@dataclasses.dataclass(eq=False)
class Member:
    """One actor of a crew; `handle` changes when it is replaced."""

    name: str
    handle: Any = None
    pid: int = 0


class Crew:
    """Actors of one kind.

    Args:
        kind: 'sampler' or 'reward actor', for names and messages.
        actor: the class.
        factory: builds the plain class inside the actor.
        demands: the resources of each actor.
        threads: CPU threads of each.
        retries: attempts at a chunk or a replacement beyond the first.
        on_restart: prepares a replacement before it counts as one.
    """

    def __init__(
        self,
        kind: str,
        actor: type[SamplerActor | RewardActor],
        factory: Callable[[], Any],
        demands: list[Demand],
        threads: int,
        retries: int,
        on_restart: Callable[[Member], None] | None = None,
    ) -> None:
        # Unpickled in the actor's own hands, so that a module it cannot import is an error like any other there.
        self._factory = cloudpickle.dumps(factory)
        self._threads, self.retries = threads, retries
        self._on_restart = on_restart
        gpus = demands[0].get("GPU", 0)
        self._actor = ray.remote(actor).options(
            num_cpus=demands[0].get("CPU", 1),
            num_gpus=gpus,
            max_restarts=0,
            max_task_retries=0,
            runtime_env={"env_vars": _environment(threads, bool(gpus))},
        )
        self._builds: dict[Any, Member] = {}
        self.members = [Member(f"{kind} {index}") for index in range(len(demands))]

    def launch(self) -> None:
        """Ask for every actor, without waiting for them."""
        self._builds = {self._launch(member): member for member in self.members}

    def await_ready(self) -> None:
        """Wait until every actor is built; says so when the cluster keeps them waiting.

        Raises:
            ClusterError: an actor keeps dying.
            Exception: what the factory raised, as itself.
        """
        builds = self._builds
        waiting = list(builds)
        while waiting:
            ready, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=_WAITING_SECONDS)
            for build in ready:
                member = builds[build]
                try:
                    member.pid = settle(build)
                except LostError as error:
                    self.replace(member, error)
            if waiting:
                names = ", ".join(builds[build].name for build in waiting)
                _log.warning("still waiting for %s to start; free in the cluster: %s", names, free_resources())

    def replace(self, member: Member, reason: Exception) -> None:
        """Put a new actor in the place of one that died.

        Raises:
            ClusterError: the replacements keep dying too.
        """
        for _ in range(self.retries + 1):
            _log.warning("%s died and is restarted: %s", member.name, reason)
            kill(member)
            try:
                member.pid = settle(self._launch(member))
                if self._on_restart is not None:
                    self._on_restart(member)
                return
            except LostError as error:
                reason = error
        raise ClusterError(f"{member.name} died in each of {self.retries + 1} attempts to restart it: {reason}")

    def close(self) -> None:
        """Kill every actor."""
        for member in self.members:
            kill(member)

    def _launch(self, member: Member) -> Any:
        member.handle = self._actor.remote(member.name, self._threads)
        return member.handle.build.remote(self._factory)


def kill(member: Member) -> None:
    """End an actor, if there is one."""
    if member.handle is not None:
        ray.kill(member.handle, no_restart=True)
        member.handle = None


def settle(reference: Any) -> Any:
    """The value behind a reference.

    Raises:
        LostError: the actor or the object is gone.
        Exception: what the work raised, as itself and without Ray's wrapping; a note has the place and the traceback.
    """
    try:
        return ray.get(reference)
    except RayTaskError as error:
        cause = error.cause
        if not isinstance(cause, RayError):
            raise cause from None
        raise LostError(_first_lines(cause)) from error
    except RayError as error:
        raise LostError(_first_lines(error)) from error


def _first_lines(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:6])}"


@contextlib.contextmanager
def _errors_of(where: str) -> Iterator[None]:
    """Let an error travel: with its traceback as a note, and as a RuntimeError when its own type cannot be pickled."""
    try:
        yield
    except Exception as error:
        error.add_note(f"in {where} (process {os.getpid()}):\n{traceback.format_exc()}")
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # noqa: BLE001 - a user's exception may break pickle in any way
            substitute = RuntimeError(f"{type(error).__name__}: {error}")
            substitute.add_note(error.__notes__[-1])
            raise substitute from None
        raise


def _environment(threads: int, gpu: bool) -> dict[str, str]:
    """What an actor's process has to know before it imports anything."""
    paths = [path for path in map(os.path.abspath, sys.path) if not path.startswith((sys.prefix, sys.base_prefix))]
    return {
        **PATIENCE,
        **thread_environment(threads),
        # What the driver can import, a reward of the user's for instance, an actor can import.
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        **({} if gpu else {"CUDA_VISIBLE_DEVICES": ""}),
    }


def _hold_torch_to(threads: int) -> None:
    """The environment already does; a factory may have changed it since."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)
