"""A pool: the actors of one kind, and the state of each."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import ObjectLostError, RayError, RayTaskError, RuntimeEnvSetupError

from prdp.cluster.base import ClusterSetupError, Identity
from prdp.cluster.direct_weights import TransferError
from prdp.cluster.environment import KEY, RewardEnvironment, import_paths, python_path
from prdp.cluster.placement import Demand
from prdp.cluster.ray_actors import Built, RewardActor, SamplerActor
from prdp.cluster.threads import PASSIVE_WAITING, thread_environment
from prdp.cluster.time_limits import WorkStatus

_log = logging.getLogger(__name__)

_TAIL_LINES = 12
_FETCH_SECONDS = 600.0
"""An answer that is there is fetched from its node; Ray tells when the node is lost, but not when it is stuck."""


class LostError(Exception):
    """The actor, its node or its result is gone; the work itself may be fine elsewhere."""

    fate = "died"
    at_work = True
    """Whether the chunk that it had first may be the reason."""


class GoneError(LostError):
    """The object is gone, or what it was to be made from."""

    fate = "lost what it had"


class HungError(LostError):
    """The actor is there and does not answer."""

    fate = "hung"


class CutOffError(LostError):
    """The actor may be there, but weights on their way to it got lost."""

    fate = "was cut off"
    at_work = False


class StalledError(CutOffError):
    """The actor is there and takes no weights."""

    fate = "hung"


@dataclasses.dataclass(eq=False)
class Member:
    """One actor of a pool; `handle` changes when it is replaced.

    Attributes:
        name, kind: 'sampler 3', 'sampler'.
        index: within the pool.
        state: 'starting', 'ready' or 'waiting', which is dead and to be started again after a pause.
        bound: the weights handed to it last, acknowledged or on their way.
        bind_seconds: binding them took, until a chunk takes that along.
        failures: deaths in a row, without a finished chunk between them.
        done: kinds of work that it has finished some of.
        waits: seconds that its reward may wait for others in one call.
        work: what it is at.
        restarts, chunks: how often it was replaced, and chunks it finished.
    """

    name: str
    kind: str
    index: int
    handle: Any = None
    pid: int = 0
    node: str = ""
    state: str = "starting"
    bound: Identity | None = None
    bind_seconds: float = 0.0
    failures: int = 0
    restarts: int = 0
    chunks: int = 0
    done: set[str] = dataclasses.field(default_factory=set)
    waits: float = 0.0
    work: WorkStatus | None = None

    def status(self, now: float) -> dict[str, Any]:
        """What people want to know of it, at `now`, in seconds since 1970; see `Workforce.status`."""
        facts = {key: getattr(self, key) for key in ("name", "kind", "node", "pid", "state", "restarts", "chunks")}
        return facts if (work := self.work) is None else {**facts, **work.status(now)}


class ActorPool:
    """Actors of one kind.

    Args:
        kind: 'sampler' or 'reward actor', for names and messages.
        actor: the class.
        factory: builds the plain class inside the actor.
        demand: the resources of each actor.
        strategies: where each actor goes: a scheduling strategy of Ray's, or None for anywhere.
        threads: CPU threads of each.
        start_timeout: seconds that an actor may take to start.
        environment: the one to run in, when it is not the driver's.
    """

    def __init__(
        self,
        kind: str,
        actor: type[SamplerActor | RewardActor],
        factory: Callable[[], Any],
        demand: Demand,
        strategies: Sequence[Any],
        threads: int,
        start_timeout: float,
        environment: RewardEnvironment | None = None,
    ) -> None:
        # Unpickled in the actor's own hands, so that a module it cannot import is an error like any other there.
        self._factory = cloudpickle.dumps(factory)
        self._threads, self._strategies, self._paths = threads, strategies, import_paths(environment)
        self.start_timeout = start_timeout
        self.installs = environment is not None and bool(environment.packages)
        self.identity: dict[str, Any] | None = None
        gpus = demand.get("GPU", 0)
        self._actor = ray.remote(actor)
        self._options = {
            "num_cpus": demand.get("CPU", 1),
            "num_gpus": gpus,
            "resources": {name: amount for name, amount in demand.items() if name not in ("CPU", "GPU")} or None,
            "max_restarts": 0,
            "max_task_retries": 0,
            "runtime_env": {
                "env_vars": actor_variables(threads, bool(gpus), environment),
                **(environment.runtime_env() if environment is not None else {}),
            },
        }
        self.members = [Member(f"{kind} {index}", kind, index) for index in range(len(strategies))]

    def launch(self, member: Member) -> tuple[Any, Any]:
        """Ask for an actor; a reference that is answered when it has a process, and that of its `Built`."""
        strategy = self._strategies[member.index]
        placement = {} if strategy is None else {"scheduling_strategy": strategy}
        member.handle = self._actor.options(**self._options, **placement).remote(member.name, self._threads)
        member.state, member.bound, member.bind_seconds = "starting", None, 0.0
        member.done, member.waits = set(), 0.0
        return member.handle.begin.remote(), member.handle.build.remote(self._factory, self._paths)

    def admit(self, member: Member, built: Built) -> None:
        """Take a new actor into the pool.

        Raises:
            ClusterSetupError: it is another reward than the others, for instance because their machines hold different
                installations.
        """
        relay_warnings(member, built.messages)
        if self.identity is None:
            self.identity = built.identity
        elif self.identity != built.identity:
            raise ClusterSetupError(
                f"the reward actors disagree on what they score by: {member.name} on {built.node} has "
                f"{_described(built.identity)}, and before it there was {_described(self.identity)}"
            )
        member.pid, member.node, member.waits, member.state = built.pid, built.node, built.waits, "ready"


def relay_warnings(member: Member, messages: tuple[str, ...]) -> None:
    """Repeat an actor's warnings, which would otherwise end in the log of its process."""
    for text in messages:
        _log.warning("%s: %s", member.name, text)


def _described(identity: Mapping[str, Any]) -> str:
    return f"'{identity.get('name')}' version '{identity.get('version')}'"


def kill(member: Member) -> None:
    """End an actor, if there is one; who asks it for work later finds it dead.

    Ray sends SIGKILL to a process that has not ended by itself within 5 seconds, as a stopped one cannot.
    """
    if member.handle is not None:
        ray.kill(member.handle, no_restart=True)


def fetch_result(reference: Any) -> Any:
    """The value behind a reference.

    Raises:
        LostError: the actor or the object is gone, or does not arrive in 10 minutes.
        Exception: what the work raised, as itself and without Ray's wrapping; a note has the place and the traceback.
    """
    try:
        return ray.get(reference, timeout=_FETCH_SECONDS)
    except RuntimeEnvSetupError as error:
        raise ClusterSetupError(f"{KEY}: the environment could not be made ready: {_tail(str(error))}") from error
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, TransferError):
            raise CutOffError(str(cause)) from error
        if not isinstance(cause, RayError):
            raise cause from None
        raise _lost(cause) from error
    except RayError as error:
        raise _lost(error) from error


def _lost(error: RayError) -> LostError:
    kind = GoneError if isinstance(error, ObjectLostError) else LostError
    return kind(_first_lines(error))


def _tail(text: str) -> str:
    """The end of a long message, where pip says what went wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "\n  ".join(lines[-_TAIL_LINES:])


def _first_lines(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:6])}"


def actor_variables(threads: int, gpu: bool, environment: RewardEnvironment | None) -> dict[str, str]:
    """What an actor's process has to know before it imports anything."""
    return {
        **PASSIVE_WAITING,
        **thread_environment(threads),
        "PYTHONPATH": python_path(environment),
        **({} if gpu else {"CUDA_VISIBLE_DEVICES": ""}),
    }
