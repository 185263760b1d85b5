"""How published weights get to the samplers: by reference through Ray's object store, or straight from this process."""

from __future__ import annotations

import dataclasses
import itertools
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

import ray

from prdp.cluster.actor_pool import CutOffError, LostError, Member, StalledError
from prdp.cluster.base import ClusterSetupError
from prdp.cluster.direct_weights import Manifest, Rendezvous, join, open_store, send
from prdp.cluster.event_loop import EventLoop
from prdp.config import DIRECT_TRANSPORTS, ClusterConfig
from prdp.types import Weights

OnLost = Callable[[Member, LostError], None]

_GRACE_SECONDS = 5.0
"""By which torch waits longer than the dispatcher, so that the one gives a sampler up and the other ends its thread."""
_RAY_SPEAKS_FIRST_SECONDS = 1.0
"""A broken connection mostly is a death, whose cause Ray knows."""


class WeightTransport(Protocol):
    """Everything but `publish` is called in the dispatcher's thread."""

    def start(self, loop: EventLoop, on_lost: OnLost) -> None:
        """Begin.

        Args:
            loop: of the dispatcher.
            on_lost: to be told of a sampler that takes no weights.
        """
        ...

    def publish(self, weights: Weights) -> Any:
        """What a job keeps to give to `deliver`."""
        ...

    def ready_for(self, member: Member, idle: bool) -> bool:
        """Whether a sampler can be handed weights now; if not, the loop will have an event when it may."""
        ...

    def deliver(self, member: Member, published: Any) -> Any:
        """Have a sampler bind weights; a reference of its answer (version, checksum, seconds)."""
        ...


class ObjectStoreTransport:
    """The weights lie in the object store once; each sampler fetches them when its turn to bind them comes."""

    def start(self, loop: EventLoop, on_lost: OnLost) -> None:
        """Nothing to do; see `WeightTransport`."""

    def publish(self, weights: Weights) -> Any:
        """Put them into the object store; see `WeightTransport`."""
        return ray.put(weights)

    def ready_for(self, member: Member, idle: bool) -> bool:
        """Always: binding waits at the actor for the chunk before; see `WeightTransport`."""
        return True

    def deliver(self, member: Member, published: Any) -> Any:
        """By reference; see `WeightTransport`."""
        return member.handle.load_weights.remote(published)


@dataclasses.dataclass(eq=False)
class _Transfer:
    """Weights on their way.

    Attributes:
        handle: the actor they go to; another one may be in the member's place by now.
        progressed: when the last bucket was taken, by the monotonic clock.
    """

    member: Member
    handle: Any
    weights: Weights
    progressed: float = dataclasses.field(default_factory=time.monotonic)


@dataclasses.dataclass
class _Connection:
    """The group with one actor: where to meet, and the learner's end once they have."""

    handle: Any
    rendezvous: Rendezvous
    group: Any = None


class DirectTransport:
    """The weights go to one idle sampler after the other, by a process group of two with each.

    A transfer has a thread of its own, which is left to itself when the sampler dies or hangs in the middle.

    Args:
        config: the `cluster` section.
        device: of the learner, such as 'cuda:0'; NCCL works there.

    Raises:
        ClusterSetupError: torch has no such backend, or no GPU for it.
    """

    def __init__(self, config: ClusterConfig, device: str) -> None:
        self._backend, self._timeout = config.weight_transport, config.weight_timeout_seconds
        _check_backend(self._backend, device)
        self._device = device if self._backend == "nccl" else "cpu"
        self._loop: EventLoop | None = None
        self._on_lost: OnLost = lambda member, error: None
        self._store: tuple[Any, int] | None = None
        self._connections: dict[Member, _Connection] = {}
        self._numbers = itertools.count()
        self._current: _Transfer | None = None

    def start(self, loop: EventLoop, on_lost: OnLost) -> None:
        """See `WeightTransport`."""
        self._loop, self._on_lost = loop, on_lost

    def publish(self, weights: Weights) -> Any:
        """The arrays stay where they are; see `WeightTransport`."""
        return weights

    def ready_for(self, member: Member, idle: bool) -> bool:
        """One at a time, and only to a sampler that can take them at once; see `WeightTransport`."""
        if self._current is not None and not _is_there(self._current):
            self._current = None
        return idle and self._current is None

    def deliver(self, member: Member, published: Any) -> Any:
        """Start a transfer; see `WeightTransport`."""
        assert self._loop is not None
        connection = self._connect(member)
        transfer = self._current = _Transfer(member, member.handle, published)
        answer = member.handle.receive_weights.remote(connection.rendezvous, Manifest.of(published))
        threading.Thread(
            target=self._run_transfer, args=(transfer, connection), name="prdp weights", daemon=True
        ).start()
        self._loop.after(self._timeout, lambda: self._check_hung(transfer))
        return answer

    def _connect(self, member: Member) -> _Connection:
        connection = self._connections.get(member)
        if connection is None or connection.handle is not member.handle:
            host = ray.util.get_node_ip_address()
            if self._store is None:
                self._store = open_store(host, self._timeout)
            key = f"{member.name}/{next(self._numbers)}"
            rendezvous = Rendezvous(host, self._store[1], key, self._backend, self._timeout + _GRACE_SECONDS)
            connection = self._connections[member] = _Connection(member.handle, rendezvous)
        return connection

    def _run_transfer(self, transfer: _Transfer, connection: _Connection) -> None:
        """Meet the sampler, when it is the first time, and send; in the transfer's thread."""
        assert self._loop is not None
        problem: Exception | None = None

        def progressed() -> None:
            transfer.progressed = time.monotonic()

        try:
            if connection.group is None:
                connection.group = join(connection.rendezvous, 0, connection.rendezvous.host)
                progressed()
            send(connection.group, transfer.weights.tensors, self._device, progressed)
        except Exception as error:  # noqa: BLE001 - whatever it is, this sampler has no weights
            problem = error
        self._loop.call(lambda: self._ended(transfer, problem))

    def _ended(self, transfer: _Transfer, problem: Exception | None) -> None:
        assert self._loop is not None
        if self._current is not transfer:
            return
        if problem is None:
            self._current = None
        else:
            error = CutOffError(f"{type(problem).__name__}: {problem}")
            self._loop.after(_RAY_SPEAKS_FIRST_SECONDS, lambda: self._give_up(transfer, error))

    def _check_hung(self, transfer: _Transfer) -> None:
        """Give a sampler up that takes nothing for too long; look again when it may."""
        assert self._loop is not None
        if self._current is not transfer:
            return
        left = transfer.progressed + self._timeout - time.monotonic()
        if left > 0:
            self._loop.after(left, lambda: self._check_hung(transfer))
        else:
            self._give_up(transfer, StalledError(f"it took no weights within {_KEY_TIMEOUT}={self._timeout:g}"))

    def _give_up(self, transfer: _Transfer, error: LostError) -> None:
        if self._current is transfer:
            self._current = None
            if _is_there(transfer):
                self._on_lost(transfer.member, error)


_KEY = "cluster.weight_transport"
_KEY_TIMEOUT = "cluster.weight_timeout_seconds"


def build_transport(config: ClusterConfig, learner_device: str | None) -> WeightTransport:
    """The one that `config.weight_transport` names.

    Args:
        learner_device: None where no learner publishes; there is nothing to send then, and the object store does.

    Raises:
        ClusterSetupError: it cannot work here.
        ValueError: an unknown name.
    """
    if learner_device is None or config.weight_transport == "object_store":
        return ObjectStoreTransport()
    if config.weight_transport in DIRECT_TRANSPORTS:
        return DirectTransport(config, learner_device)
    raise ValueError(
        f"{_KEY} is {config.weight_transport!r}; expected one of object_store, {', '.join(DIRECT_TRANSPORTS)}"
    )


def _is_there(transfer: _Transfer) -> bool:
    """Whether the actor that a transfer goes to was not given up in the meantime."""
    return transfer.member.handle is transfer.handle and transfer.member.state == "ready"


def _check_backend(backend: str, device: str) -> None:
    import torch.distributed

    if not torch.distributed.is_available() or not torch.distributed.is_backend_available(backend):
        raise ClusterSetupError(f"{_KEY}={backend}: torch {torch.__version__} was built without it; use object_store")
    if backend == "nccl" and not (device.startswith("cuda") and torch.cuda.is_available()):
        raise ClusterSetupError(f"{_KEY}=nccl: the learner works on {device}, and NCCL needs a GPU; use object_store")
