"""The remote reward: the same numbers as at home, through failures that pass, and clear words for those that do not."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from http_rewards import Exact, batch, serving

from prdp.cluster.base import RewardWorker
from prdp.rewards import build_reward, check_reward
from prdp.rewards.base import identity_of
from prdp.rewards.http_server import RewardServer
from prdp.rewards.remote import RemoteReward
from prdp.rewards.weighted_sum import WeightedSum
from prdp.rewards.wire import Limits
from prdp.support.errors import StartError

TOKEN = "a-secret-of-the-tests"


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PRDP_REWARD_TOKEN", raising=False)


def remote(url: str, **arguments: Any) -> RemoteReward:
    return RemoteReward(url, **{"retries": 2, "backoff_seconds": 0.001, "timeout_seconds": 20.0, **arguments})


@pytest.mark.parametrize("encoding", ["png", "raw"])
def test_remote_scores_equal_local_ones_bit_for_bit(encoding: str) -> None:
    images, prompts, metadata = batch(7)
    rewards, parts = Exact().score(images, prompts, metadata)
    served = Exact()
    with serving(served) as server:
        client = remote(server.url, batch_size=3, encoding=encoding)
        assert identity_of(client) == {"name": "exact", "version": "3"}
        answer, answer_parts = client.score(images, prompts, metadata)
    assert served.batches == [3, 3, 1]
    np.testing.assert_array_equal(answer, rewards)
    np.testing.assert_array_equal(answer_parts["odd"], parts["odd"])
    assert np.isnan(parts["odd"]).any()


def test_a_sum_is_served_with_its_terms() -> None:
    terms = {"red": {"weight": 2.0, "reward": {"_target_": "prdp.rewards.redness.Redness"}}}
    with serving(WeightedSum(terms)) as server:
        client = build_reward({"_target_": "prdp.rewards.remote.RemoteReward", "url": server.url})
        assert identity_of(client) == WeightedSum(terms).identity()
        images = np.full((1, 2, 2, 3), [255, 0, 0], np.uint8)
        assert client.score(images, ["a"], [{}])[1]["red"].tolist() == [1.0]


def test_requests_are_split_to_the_limits_of_either_end() -> None:
    images, prompts, metadata = batch(6, side=32)
    expected = Exact().score(images, prompts, metadata)[0]
    one = 32 * 33 * 3 * 4 // 3 + 500
    for limits, arguments, largest in (
        (Limits(images=2), {}, 2),
        (Limits(request_bytes=one), {"encoding": "raw"}, 1),
        (None, {"encoding": "raw", "max_request_mib": 4 * one / 2**20}, 3),
    ):
        served = Exact()
        with serving(served, limits=limits) as server:
            np.testing.assert_array_equal(remote(server.url, **arguments).score(images, prompts, metadata)[0], expected)
        assert max(served.batches) == largest
    with serving(Exact()) as server, pytest.raises(ValueError, match=r"an image of 32 x 33 makes a request of \d+ "):
        remote(server.url, max_request_mib=0.001).score(images, prompts, metadata)


class Flaky(RewardServer):
    """Fails so many requests for scores first, in a way of its own."""

    failures = 0
    how = "503"

    def finish_request(self, request: Any, client_address: Any) -> None:
        start = request.recv(4, socket.MSG_PEEK)
        if start == b"POST" and self.failures:
            self.failures -= 1
            while b"\r\n\r\n" not in request.recv(65536):
                pass
            answers = {
                "503": b"HTTP/1.1 503 Busy\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n",
                "drop": b"",
                "cut": b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{",
                "noise": b"\x00\xff\x00 not HTTP\r\n\r\n",
                "302": b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
                "html": b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>",
            }
            request.sendall(answers[self.how])
            return
        super().finish_request(request, client_address)


@pytest.mark.parametrize("how", ["503", "drop", "cut", "noise"])
def test_failures_that_pass_are_retried_and_told(how: str, caplog: pytest.LogCaptureFixture) -> None:
    images, prompts, metadata = batch(2)
    with serving(Exact(), kind=Flaky) as server:
        client = remote(server.url)
        server.how, server.failures = how, 2  # type: ignore[attr-defined]
        with caplog.at_level(logging.WARNING):
            rewards, _ = client.score(images, prompts, metadata)
    np.testing.assert_array_equal(rewards, Exact().score(images, prompts, metadata)[0])
    assert [record.getMessage().rpartition("; ")[2] for record in caplog.records] == [
        "attempt 2 of 3 follows",
        "attempt 3 of 3 follows",
    ]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("503", r"/score gave no answer in 3 attempts of 20 s; last: HTTP 503"),
        ("302", r"/score answered HTTP 302"),
        ("html", r"the body is not JSON"),
    ],
)
def test_failures_that_stay_end_with_the_last_cause(how: str, message: str) -> None:
    with serving(Exact(), kind=Flaky) as server:
        client = remote(server.url)
        server.how, server.failures = how, 9  # type: ignore[attr-defined]
        with pytest.raises(ValueError, match=message):
            client.score(*batch(1))


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_server_that_hangs_meets_the_time_out(silent: str) -> None:
    with pytest.raises(ValueError, match=r"/identity gave no answer in 2 attempts of 0.2 s; last: TimeoutError"):
        remote(silent, timeout_seconds=0.2, retries=1)


@pytest.mark.parametrize(
    "start",
    [b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: "],
    ids=["body", "headers"],
)
def test_a_server_that_drips_meets_the_time_out(start: bytes) -> None:
    """Each byte comes well within a time-out of its own; the whole answer never does."""
    stop = threading.Event()

    def drip(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(start)
            while not stop.wait(0.02):
                try:
                    connection.sendall(b" ")
                except OSError:
                    return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip, args=(listener,))
        thread.start()
        try:
            with pytest.raises(ValueError, match=r"in one attempt of 0\.3 s; last: TimeoutError"):
                remote(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout_seconds=0.3, retries=0)
        finally:
            stop.set()
            thread.join()


def test_pauses_grow_with_jitter(monkeypatch: pytest.MonkeyPatch, silent: str) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("prdp.support.http_client.time.sleep", pauses.append)
    refusing = lambda *arguments: (_ for _ in ()).throw(ConnectionRefusedError("no"))  # noqa: E731
    monkeypatch.setattr("prdp.support.http_client.HttpServer._exchange", refusing)
    with pytest.raises(ValueError, match="in 9 attempts"):
        remote(silent, retries=8, backoff_seconds=1.0)
    full = [1, 2, 4, 8, 16, 30, 30, 30]
    assert all(most / 2 <= pause <= most for pause, most in zip(pauses, full, strict=True))
    assert len(set(pauses)) == len(pauses)


def test_a_server_that_becomes_another_reward_is_refused() -> None:
    served = Exact()
    with serving(served) as server:
        client = remote(server.url)
        served.version = "4"  # type: ignore[misc]
        with pytest.raises(ValueError, match="by 'exact' version '4'; the run began with 'exact' version '3'"):
            client.score(*batch(1))


def test_what_the_reward_raises_is_told_and_not_retried() -> None:
    images, prompts, metadata = batch(2)
    for what, message in (
        ({"raise": "value"}, "answered HTTP 422: reward 'exact' refuses: no such mood"),
        ({"raise": "key"}, "answered HTTP 500: reward 'exact' raised KeyError: 'no such mood'"),
        ({"long": True}, r"answered HTTP 500: reward 'exact' has shape \(3,\), expected \(2,\)"),
    ):
        served = Exact()
        with serving(served) as server, pytest.raises(ValueError, match=message):
            worker = RewardWorker(remote(server.url), retries=2, pause_seconds=0.0)
            worker.score(images, prompts, [{**meta, **what} for meta in metadata], "epoch 1")
        assert len(served.batches) == 1


def test_token_comes_from_the_environment_and_stays_out_of_words(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with serving(Exact(), TOKEN) as server:
        with pytest.raises(ValueError, match="refuses the token: set the environment variable PRDP_REWARD_TOKEN"):
            remote(server.url)
        monkeypatch.setenv("OTHER_TOKEN", TOKEN + "x")
        with pytest.raises(ValueError, match="OTHER_TOKEN") as caught:
            remote(server.url, token_variable="OTHER_TOKEN")
        monkeypatch.setenv("PRDP_REWARD_TOKEN", TOKEN)
        client = remote(server.url)
        client.score(*batch(1))
        with pytest.raises(ValueError) as refused:
            client.score(*batch(1)[:2], [{"raise": "value"}])
    said = f"{caught.value}{refused.value}{caplog.text}{capfd.readouterr()}{client.identity()}"
    assert TOKEN not in said


def test_start_checks_name_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    target = {"_target_": "prdp.rewards.remote.RemoteReward"}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = f"http://127.0.0.1:{listener.getsockname()[1]}"
    for arguments, message in (
        ({"url": closed}, "/identity gave no answer in one attempt of 60 s; last: ConnectionRefusedError"),
        ({"url": "ftp://somewhere"}, "url=ftp://somewhere: must be http://host:port"),
        ({"url": "http://me:letmein@somewhere"}, "url=http://somewhere: no user or password in a URL"),
        ({"url": closed, "batch_size": 0}, "batch_size=0: must be at least 1"),
        ({"url": closed, "timeout_seconds": 0}, "timeout_seconds=0: must be above 0"),
        ({"url": closed, "retries": -1}, "retries=-1: must be at least 0"),
        ({"url": closed, "encoding": "jpeg"}, "encoding=jpeg: must be one of png, raw"),
    ):
        with pytest.raises(StartError, match=r"^reward: ") as caught:
            check_reward("reward", {**target, **arguments})
        assert message in str(caught.value)
        assert "letmein" not in str(caught.value)
    monkeypatch.setenv("PRDP_REWARD_TOKEN", "line\nbreak")
    with pytest.raises(StartError, match="PRDP_REWARD_TOKEN holds more than printable ASCII"):
        check_reward("reward", {**target, "url": closed})
    assert "line" in os.environ["PRDP_REWARD_TOKEN"]


def test_metadata_that_json_cannot_hold_is_named() -> None:
    with serving(Exact()) as server:
        client = remote(server.url)
        images, prompts, _ = batch(1)
        client.score(images, prompts, [{"bonus": np.float32(0.5), "words": ("a", "b"), "box": np.zeros(2)}])
        with pytest.raises(ValueError, match=r"metadata of prompt 'a färbig .* cannot be sent as JSON: a object"):
            client.score(images, prompts, [{"bonus": 1, "what": object()}])
