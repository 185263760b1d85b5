"""Actors that do not start: waited for with a word, and given up when nobody of their kind is there."""

from __future__ import annotations

import concurrent.futures
import queue
from typing import Any

import pytest

pytest.importorskip("ray")

from prdp.cluster import actor_supervisor
from prdp.cluster.actor_pool import Member
from prdp.cluster.actor_supervisor import ActorSupervisor
from prdp.cluster.base import ClusterError
from prdp.cluster.event_loop import EventLoop


class Never:
    """An answer that does not come."""

    def future(self) -> concurrent.futures.Future[None]:
        return concurrent.futures.Future()


class Waiting:
    """A pool whose actors find no room."""

    start_timeout, installs = 0.03, False

    def __init__(self) -> None:
        self.members = [Member("sampler 0", "sampler", 0), Member("sampler 1", "sampler", 1)]

    def launch(self, member: Member) -> tuple[Never, Never]:
        return Never(), Never()


class TaskOwner:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: queue.SimpleQueue[Exception] = queue.SimpleQueue()

    def on_fatal(self, error: Exception) -> None:
        self.told.put(error)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A supervisor of two samplers that wait, looked at every hundredth of a second."""
    monkeypatch.setattr(actor_supervisor, "_WAITING_SECONDS", 0.01)
    monkeypatch.setattr(actor_supervisor, "_answered", lambda reference: False)
    monkeypatch.setattr(actor_supervisor, "free_resources", lambda: "0 CPUs and 0 GPUs")
    owner, pool, failures = TaskOwner(), Waiting(), queue.SimpleQueue()  # type: ignore[var-annotated]
    loop = EventLoop("loop", lambda: None, failures.put)
    supervisor = ActorSupervisor((pool,), loop, owner, 2, {})  # type: ignore[arg-type]
    yield pool, owner, loop, supervisor
    loop.close()
    assert failures.empty()


def test_a_kind_that_nobody_is_there_of_is_given_up(started, caplog):
    _, owner, loop, supervisor = started
    loop.call(supervisor.launch_all)
    loop.start()
    error = owner.told.get(timeout=30)
    assert isinstance(error, ClusterError)
    assert str(error).startswith("sampler 0 did not start within cluster.start_timeout_seconds=0.03; free in the clus")
    assert "still waiting for sampler 0 to start; free in the cluster: 0 CPUs and 0 GPUs" in caplog.text


def test_a_replacement_is_waited_for_while_others_work(started, caplog):
    pool, owner, loop, supervisor = started
    pool.members[1].state = "ready"
    words: queue.SimpleQueue[None] = queue.SimpleQueue()
    loop.call(lambda: supervisor._launch(pool.members[0]))
    loop.call(lambda: loop.after(0.3, lambda: words.put(None)))
    loop.start()
    words.get(timeout=30)
    assert "still waiting for sampler 0" in caplog.text
    assert owner.told.empty()
