"""Actors that hang at any kind of work, by a clock of the test's: warned of, then replaced."""

from __future__ import annotations

import concurrent.futures
import heapq
import itertools
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("ray")

from cluster_stubs import prompts

from prdp.cluster import actor_supervisor
from prdp.cluster.actor_pool import HungError, Member
from prdp.cluster.actor_supervisor import ActorSupervisor, Task
from prdp.cluster.base import ClusterError
from prdp.cluster.ray_actors import Built
from prdp.cluster.rollout_job import RolloutJob
from prdp.cluster.time_limits import limits_of
from prdp.config import ClusterConfig


class Answer:
    """A reference that is answered when the test says so."""

    def __init__(self) -> None:
        self.reply: concurrent.futures.Future[Any] = concurrent.futures.Future()

    def future(self) -> concurrent.futures.Future[Any]:
        return self.reply


class Stage:
    """A supervisor of two samplers, with its loop and clock in the test's hands; also its owner."""

    start_timeout, installs = 900.0, False

    def __init__(self, config: ClusterConfig) -> None:
        self.now, self.timers, self.ticket = 0.0, [], itertools.count()  # type: ignore[var-annotated]
        self.members = [Member("sampler 0", "sampler", 0), Member("sampler 1", "sampler", 1)]
        self.launched: list[tuple[Answer, Answer]] = []
        self.back: list[tuple[list[Task], Exception]] = []
        self.failures: list[BaseException] = []
        self.supervisor = ActorSupervisor((self,), self, self, 2, limits_of(config), lambda: self.now)  # type: ignore[arg-type]

    def call(self, action: Callable[[], None]) -> None:
        action()
        self.supervisor.after_event()

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self.timers, (self.now + seconds, next(self.ticket), action))

    def wait(self, seconds: float) -> None:
        """Let time pass, with all that is due in it."""
        end = self.now + seconds
        while self.timers and self.timers[0][0] <= end:
            due, _, action = heapq.heappop(self.timers)
            self.now = max(self.now, due)
            self.call(action)
        self.now = end

    def launch(self, member: Member) -> tuple[Answer, Answer]:
        member.handle, member.state = object(), "starting"
        member.done = set()
        self.launched.append((Answer(), Answer()))
        return self.launched[-1]

    def admit(self, member: Member, built: Built) -> None:
        member.state = "ready"

    def on_answer(self, task: Task, answer: Any) -> None:
        pass

    def on_actor_lost(self, held: list[Task], error: Exception) -> None:
        self.back.append((held, error))

    def on_fatal(self, error: BaseException) -> None:
        self.failures.append(error)

    def start(self) -> None:
        self.call(self.supervisor.launch_all)
        for begun, answer in self.launched:
            begun.reply.set_result(None)
            answer.reply.set_result(Built(1, "here"))

    def ask(self, kind: str, index: int = 0, member: int = 0) -> Task:
        job = RolloutJob(prompts(4), prompts(4).chunks(2), None, None, 3, 1, True)
        task = Task(kind, self.members[member], Answer(), job, index if kind != "bind" else -1, Answer())
        self.call(lambda: self.supervisor.ask(task))
        return task

    def finish(self, kind: str, seconds: float) -> None:
        """A piece of work that takes so long."""
        task = self.ask(kind)
        self.wait(seconds)
        task.answer.reply.set_result(None)


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    return staged(monkeypatch, ClusterConfig(kind="ray"))


def staged(monkeypatch: pytest.MonkeyPatch, config: ClusterConfig) -> Stage:
    monkeypatch.setattr(actor_supervisor, "_answered", lambda reference: reference.reply.done())
    monkeypatch.setattr(actor_supervisor, "fetch_result", lambda reference: reference.reply.result())
    monkeypatch.setattr(actor_supervisor, "kill", lambda member: None)
    monkeypatch.setattr(actor_supervisor, "free_resources", lambda: "2 CPUs and 0 GPUs")
    return Stage(config)


@pytest.mark.parametrize("kind", ["sample", "score", "bind"])
def test_whoever_takes_far_longer_than_others_did_is_warned_of_and_replaced(stage: Stage, kind: str, caplog) -> None:
    stage.start()
    stage.finish(kind, 400.0)
    stage.finish(kind, 8.0)
    task = stage.ask(kind)
    stage.wait(39.0)
    assert "without an answer" not in caplog.text
    stage.wait(2.0)
    assert (
        "sampler 0 has been" in caplog.text and "for 40 s without an answer; it is replaced after 80 s" in caplog.text
    )
    told = stage.members[0].status(stage.members[0].work.since + 41)
    assert told["silent"] and told["limit_seconds"] == pytest.approx(80.0)
    assert told["doing"].startswith(actor_supervisor._DOING[kind])
    stage.wait(38.0)
    assert not stage.back
    stage.wait(2.0)
    ((held, error),) = stage.back
    assert held == ([] if kind == "bind" else [task])
    assert isinstance(error, HungError)
    assert "no answer within 80 s, where earlier ones took at most 8 s (cluster." in str(error)
    assert stage.members[0].state == "starting" and stage.members[0].restarts == 1
    chunks = stage.members[0].chunks
    task.answer.reply.set_result(None)
    assert stage.members[0].chunks == chunks  # too late: it was given to others


def test_the_first_piece_of_a_new_actor_has_the_time_of_a_start(stage: Stage) -> None:
    stage.start()
    for _ in range(2):
        stage.finish("sample", 1.0)
    stage.ask("sample", member=1)
    stage.wait(899.0)
    assert not stage.back
    stage.wait(2.0)
    assert len(stage.back) == 1


def test_a_chunk_that_hangs_again_has_twice_the_time(stage: Stage) -> None:
    stage.start()
    for _ in range(2):
        stage.finish("sample", 1.0)
    task = stage.ask("sample")
    assert task.job is not None
    task.job.deaths[0] = 1
    stage.wait(119.0)
    assert not stage.back
    stage.wait(2.0)
    assert len(stage.back) == 1


def test_no_limit_still_warns(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    stage = staged(monkeypatch, ClusterConfig(kind="ray", sample_timeout_seconds=0))
    stage.start()
    for _ in range(2):
        stage.finish("sample", 1.0)
    stage.ask("sample")
    stage.wait(10_000.0)
    assert not stage.back
    assert "sampler 0 has been sampling epoch 3, prompts 0 to 1 for 30 s without an answer\n" in caplog.text
    assert stage.members[0].status(1e12)["limit_seconds"] is None


def test_a_pause_of_this_process_is_nobodys_fault(stage: Stage) -> None:
    """As after Ctrl-Z and fg: answers that came meanwhile are heard a moment later."""
    stage.start()
    for _ in range(2):
        stage.finish("sample", 1.0)
    stage.ask("sample")
    stage.now += 5000.0
    stage.wait(40.0)
    assert not stage.back
    stage.wait(30.0)
    assert len(stage.back) == 1


def test_an_actor_that_hangs_while_it_is_built_is_replaced_when_others_work(stage: Stage, caplog) -> None:
    stage.start()
    stage.supervisor.lost(stage.members[0], HungError("for some reason"))
    stage.wait(1.0)
    begun, _ = stage.launched[-1]
    stage.wait(5000.0)  # no room for it
    assert len(stage.back) == 1 and stage.members[0].state == "starting"
    begun.reply.set_result(None)
    stage.wait(890.0)
    assert len(stage.back) == 1
    stage.wait(20.0)
    assert str(stage.back[1][1]) == "it did not start within cluster.start_timeout_seconds=900"


def test_an_actor_that_hangs_while_it_is_built_and_is_needed_ends_the_run(stage: Stage) -> None:
    stage.installs = True
    stage.call(stage.supervisor.launch_all)
    waiter: concurrent.futures.Future[None] = concurrent.futures.Future()
    stage.supervisor.await_all(waiter)
    stage.wait(2000.0)
    assert not stage.failures
    stage.launched[0][0].reply.set_result(None)
    stage.wait(910.0)
    (error,) = stage.failures
    assert isinstance(error, ClusterError)
    assert str(error).startswith(
        "sampler 0 did not start within cluster.start_timeout_seconds=900; free in the cluster"
    )


def test_an_event_about_one_has_nobody_else_looked_at(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the work for each chunk would grow with the samplers."""
    stage.start()
    stage.ask("sample", member=1)
    looked, check = [], stage.supervisor._check_hung
    monkeypatch.setattr(stage.supervisor, "_check_hung", lambda member: looked.append(member) or check(member))
    stage.finish("sample", 1.0)
    assert set(looked) == {stage.members[0]}
    stage.wait(5.0)
    assert set(looked) == set(stage.members)
