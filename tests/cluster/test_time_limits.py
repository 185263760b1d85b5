"""Time limits by what earlier work took, and whoever exceeds them: told in one process, replaced among actors."""

from __future__ import annotations

import logging
import math
import threading
from typing import Any

import pytest

from prdp.cluster.base import RewardWorker, waits_of_worker
from prdp.cluster.time_limits import TimeLimit, Watchdog, limits_of
from prdp.config import ClusterConfig
from prdp.configuration.compose import Composer
from prdp.support.errors import ConfigError


class Clock:
    """Goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_limit_follows_the_longest_of_what_was_finished_by_size() -> None:
    limit = TimeLimit("key", None, 900.0)
    assert limit.of(8, first=False) == 900.0
    limit.learn(4.0, units=2)
    limit.learn(16.0, units=16)
    assert limit.of(8, first=False) == 10 * 2.0 * 8
    assert limit.of(8, first=True) == 900.0
    assert limit.of(1, first=False) == 60.0
    assert limit.of(1, first=False, extra=500.0) == 560.0
    assert limit.of(8, first=False, attempts=2) == 4 * 160.0
    for _ in range(200):
        limit.learn(1.0, units=1)
    assert limit.longest(8) == 8.0
    assert limit.explain(8, 80.0) == "80 s, where earlier ones took at most 8 s (key sets another limit)"


def test_a_number_stands_and_0_is_no_limit() -> None:
    limit = TimeLimit("key", 3.0, 900.0)
    limit.learn(100.0, 1)
    assert limit.of(8, first=True, extra=5.0, attempts=3) == 3.0
    assert limit.explain(8, 3.0) == "key=3"
    assert TimeLimit("key", 0.0, 900.0).of(8, first=False) == math.inf


def test_a_reward_that_may_wait_for_a_server_has_that_time_too() -> None:
    class Patient:
        name, version, waits_seconds = "patient", "1", 7.0

    assert waits_of_worker(RewardWorker(Patient(), retries=2)) == 3 * 7.0 + 1.0 + 2.0
    assert waits_of_worker(object()) == 0.0  # type: ignore[arg-type]


def test_keys_of_the_limits() -> None:
    limits = limits_of(ClusterConfig(sample_timeout_seconds=7.0, start_timeout_seconds=20.0))
    assert {kind: limit.key for kind, limit in limits.items()} == {
        "sample": "cluster.sample_timeout_seconds",
        "bind": "cluster.sample_timeout_seconds",
        "score": "cluster.reward_timeout_seconds",
    }
    assert (limits["bind"].of(1, True), limits["score"].of(1, True)) == (7.0, 20.0)


def test_work_of_this_process_that_takes_long_is_told_and_again_when_that_has_doubled(caplog: Any) -> None:
    clock = Clock()
    watchdog = Watchdog({"sample": TimeLimit("key", None, 900.0)}, clock)
    for _ in range(2):
        with watchdog.over("sample", "sampling epoch 1, prompts 0 to 3", units=4):
            clock.now += 8.0
    with caplog.at_level(logging.WARNING), watchdog.over("sample", "sampling epoch 2, prompts 4 to 7", units=4):
        assert watchdog.look() == 40.0
        clock.now += 41.0
        assert watchdog.work is not None and watchdog.work.status(watchdog.work.since + 41)["silent"]
        assert watchdog.look() == 41.0
        assert watchdog.look() == 41.0
        clock.now += 42.0
        assert watchdog.look() == 83.0
    watchdog.close()
    assert caplog.messages == [
        f"sampling epoch 2, prompts 4 to 7 has taken {seconds} s; earlier ones took at most 8 s" for seconds in (41, 83)
    ]
    assert watchdog.look() is None and watchdog.work is None


def test_the_thread_of_a_watchdog_speaks_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    said = threading.Event()
    monkeypatch.setattr("prdp.cluster.time_limits._log.warning", lambda *_: said.set())
    watchdog = Watchdog({"score": TimeLimit("key", None, 0.02)})
    with watchdog.over("score", "scoring"):
        assert said.wait(30)
    watchdog.close()


def test_a_word_is_said_once_though_two_look_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, said, others = Clock(), [], []
    watchdog = Watchdog({"score": TimeLimit("key", None, 900.0)}, clock)

    def slow_warning(*_: object) -> None:
        said.append(threading.current_thread().name)
        if len(said) == 1:
            others.append(threading.Thread(target=watchdog.look))
            others[0].start()
            others[0].join(0.2)

    monkeypatch.setattr("prdp.cluster.time_limits._log.warning", slow_warning)
    with watchdog.over("score", "scoring"):
        clock.now += 500.0
        watchdog.look()
        others[0].join()
    watchdog.close()
    assert len(said) == 1


def test_work_that_raises_teaches_nothing() -> None:
    limit = TimeLimit("key", None, 900.0)
    watchdog = Watchdog({"score": limit}, Clock())
    with pytest.raises(ZeroDivisionError), watchdog.over("score", "scoring"):
        raise ZeroDivisionError
    watchdog.close()
    assert limit.longest(1) is None and watchdog.work is None


def test_limits_that_cannot_be_are_refused() -> None:
    words = ["experiment=shapes_smoke", "cluster=ray", "cluster.sample_timeout_seconds=-1"]
    with (
        Composer(words) as composer,
        pytest.raises(ConfigError, match=r"sample_timeout_seconds=-1.*at least 0"),
    ):
        composer.jobs()
    words = ["experiment=shapes_smoke", "+cluster.sample_timeout_seconds=5"]
    with Composer(words) as composer, pytest.raises(ConfigError, match=r"sample_timeout_seconds=5.*needs cluster=ray"):
        composer.jobs()
