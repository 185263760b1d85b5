"""Crews: actors of one kind, which are started, watched and replaced together."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import RayError, RayTaskError, RuntimeEnvSetupError

from prdp.cluster.base import ClusterError, ClusterSetupError
from prdp.cluster.environment import KEY, RewardEnvironment, import_paths
from prdp.cluster.ray_actors import Built, RewardActor, SamplerActor
from prdp.cluster.ray_session import Demand, free_resources
from prdp.cluster.threads import PATIENCE, thread_environment

_log = logging.getLogger(__name__)

_WAITING_SECONDS = 30.0
_TAIL_LINES = 12


class LostError(Exception):
    """The actor, its node or its result is gone; the work itself may be fine elsewhere."""

    fate = "died"


class HungError(LostError):
    """The actor is there and does not answer."""

    fate = "hung"


@dataclasses.dataclass(eq=False)
class Member:
    """One actor of a crew; `handle` changes when it is replaced."""

    name: str
    handle: Any = None
    pid: int = 0
    identity: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Crew:
    """Actors of one kind.

    Args:
        kind: 'sampler' or 'reward actor', for names and messages.
        actor: the class.
        factory: builds the plain class inside the actor.
        demands: the resources of each actor.
        threads: CPU threads of each.
        retries: attempts at a chunk or a replacement beyond the first.
        environment: the one to run in, when it is not the driver's.
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
        environment: RewardEnvironment | None = None,
        on_restart: Callable[[Member], None] | None = None,
    ) -> None:
        # Unpickled in the actor's own hands, so that a module it cannot import is an error like any other there.
        self._factory = cloudpickle.dumps(factory)
        self._threads, self.retries = threads, retries
        self._on_restart = on_restart
        self._environment = environment
        gpus = demands[0].get("GPU", 0)
        self._actor = ray.remote(actor).options(
            num_cpus=demands[0].get("CPU", 1),
            num_gpus=gpus,
            max_restarts=0,
            max_task_retries=0,
            runtime_env={
                "env_vars": _variables(threads, bool(gpus), environment),
                **(environment.runtime_env() if environment is not None else {}),
            },
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
                    self._enter(member, settle(build))
                except LostError as error:
                    self.replace(member, error)
            if waiting:
                names = ", ".join(builds[build].name for build in waiting)
                installing = self._environment is not None and self._environment.packages
                doing = f"; {KEY} is installed first" if installing else ""
                _log.warning("still waiting for %s to start; free in the cluster: %s%s", names, free_resources(), doing)

    def replace(self, member: Member, reason: Exception) -> None:
        """Put a new actor in the place of one that died.

        Raises:
            ClusterError: the replacements keep dying too.
        """
        for _ in range(self.retries + 1):
            _log.warning("%s %s and is restarted: %s", member.name, getattr(reason, "fate", "died"), reason)
            kill(member)
            try:
                self._enter(member, settle(self._launch(member)))
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

    def _enter(self, member: Member, built: Built) -> None:
        """Take a new actor on."""
        tell(member, built.messages)
        if member.pid and member.identity != built.identity:
            raise ClusterError(
                f"{member.name} came back as another reward: {_described(built.identity)}, and it was "
                f"{_described(member.identity)}"
            )
        member.pid, member.identity = built.pid, built.identity

    def _launch(self, member: Member) -> Any:
        member.handle = self._actor.remote(member.name, self._threads)
        return member.handle.build.remote(self._factory)


def tell(member: Member, messages: tuple[str, ...]) -> None:
    """Repeat an actor's warnings, which would otherwise end in the log of its process."""
    for text in messages:
        _log.warning("%s: %s", member.name, text)


def one_identity(members: list[Member]) -> dict[str, Any]:
    """What all actors say that they are.

    Raises:
        ClusterSetupError: they differ, for instance because their machines hold different installations.
    """
    first = members[0]
    for member in members:
        if member.identity != first.identity:
            raise ClusterSetupError(
                f"the reward actors disagree on what they score by: {first.name} has {_described(first.identity)}, "
                f"{member.name} has {_described(member.identity)}"
            )
    return dict(first.identity)


def _described(identity: Mapping[str, Any]) -> str:
    return f"'{identity.get('name')}' version '{identity.get('version')}'"


def kill(member: Member) -> None:
    """End an actor, if there is one; who asks it for work later finds it dead."""
    if member.handle is not None:
        ray.kill(member.handle, no_restart=True)


def settle(reference: Any) -> Any:
    """The value behind a reference.

    Raises:
        LostError: the actor or the object is gone.
        Exception: what the work raised, as itself and without Ray's wrapping; a note has the place and the traceback.
    """
    try:
        return ray.get(reference)
    except RuntimeEnvSetupError as error:
        raise ClusterSetupError(f"{KEY}: the environment could not be made ready: {_tail(str(error))}") from error
    except RayTaskError as error:
        cause = error.cause
        if not isinstance(cause, RayError):
            raise cause from None
        raise LostError(_first_lines(cause)) from error
    except RayError as error:
        raise LostError(_first_lines(error)) from error


def _tail(text: str) -> str:
    """The end of a long message, where pip says what went wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "\n  ".join(lines[-_TAIL_LINES:])


def _first_lines(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:6])}"


def _variables(threads: int, gpu: bool, environment: RewardEnvironment | None) -> dict[str, str]:
    """What an actor's process has to know before it imports anything."""
    return {
        **PATIENCE,
        **thread_environment(threads),
        "PYTHONPATH": os.pathsep.join(import_paths(environment)),
        **({} if gpu else {"CUDA_VISIBLE_DEVICES": ""}),
    }
