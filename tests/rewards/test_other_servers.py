"""Reward servers of UniRL and Flow-GRPO: what is sent, what is read, and that nothing of an answer runs."""

from __future__ import annotations

import collections
import json
import pickle
import random
from typing import Any

import numpy as np
import pytest
from http_stub import Request, answering
from other_reward_servers import flow_grpo, unirl_service

from prdp.rewards.other_servers import FlowGRPOServer, UniRLService
from prdp.rewards.plain_pickle import plain_pickle
from prdp.rewards.wire_values import WireError

GREYS = np.stack([np.full((8, 8, 3), level, np.uint8) for level in (0, 51, 102, 255)])
LEVELS = [0, 0.2, 0.4, 1]
PROMPTS = ["a", "bb", "ccc", "dddd"]
ONCE: dict[str, Any] = {"retries": 0, "timeout_seconds": 10.0}


def test_unirls_service_scores_pictures_by_prompt() -> None:
    with answering(unirl_service) as (url, asked):
        reward = UniRLService(url, "bright", batch_size=3, **ONCE)
        values, parts = reward.score(GREYS, PROMPTS, [{"tag": n} for n in range(4)])
        np.testing.assert_allclose(values, LEVELS)
        assert (parts, reward.name, reward.version) == ({}, "bright", "1-unirl")
        assert [request.path for request in asked] == ["/rewards", "/score", "/score"]
        [request, *_] = json.loads(asked[1].body)["requests"]
        assert request.keys() == {"history", "required_rewards", "metadata"}
        assert (request["history"][0]["text"], request["metadata"]) == ("a", {"tag": 0})
        several = UniRLService(url, "parts", metric="Alignment", **ONCE)
        values, parts = several.score(GREYS, PROMPTS, [{}] * 4)
        np.testing.assert_allclose(values, LEVELS)
        # 'mean' is what logs call the reward's own mean.
        assert parts.keys() == {"Alignment", "parts_mean"} and parts["parts_mean"].tolist() == [1, 2, 3, 4]
        assert several.version == "1-unirl-Alignment"


def test_what_unirls_service_cannot_do_is_told() -> None:
    with answering(unirl_service) as (url, _):
        with pytest.raises(ValueError, match=r"reward=brigt: .* has no such reward. Did you mean 'bright'"):
            UniRLService.check(url=url, reward="brigt")
        with pytest.raises(ValueError, match="it has Alignment, mean: set metric"):
            UniRLService(url, "parts", **ONCE).score(GREYS, PROMPTS, [{}] * 4)
        with pytest.raises(ValueError, match=r"no score by bright for prompt 'fail': .*out of memory"):
            UniRLService(url, "bright", **ONCE).score(GREYS[:2], ["a", "fail"], [{}] * 2)
    with (
        answering(lambda *_: (200, b'{"status": "ok"}')) as (url, _),
        pytest.raises(ValueError, match="is not that of a UniRL reward service"),
    ):
        UniRLService.check(url=url, reward="bright")


@pytest.mark.parametrize(
    "answer",
    [
        b"{}",
        b'{"results": [{"bright": {"bright": 1}}]}',
        b'{"results": [{"bright": {"bright": "1"}}, {"bright": {"bright": 1}}]}',
        b'{"results": [{"bright": {"bright": NaN}}, {"bright": {"bright": 1}}]}',
        b'{"results": [[], 3], "errors": [7]}',
        b'{"results": [{"bright": {}}, {"bright": {}}], "errors": "none"}',
        b"[" * 100_000,
    ],
)
def test_half_an_answer_of_unirls_service_is_refused(answer: bytes) -> None:
    def broken(request: Request) -> tuple[int, bytes]:
        return unirl_service(request) if request.path == "/rewards" else (200, answer)

    with answering(broken) as (url, _):
        reward = UniRLService(url, "bright", **ONCE)
        with pytest.raises(ValueError, match=r"^http://127"):
            reward.score(GREYS[:2], PROMPTS[:2], [{}] * 2)


def test_flow_grpos_server_scores_by_the_key_that_is_named() -> None:
    with answering(flow_grpo) as (url, asked):
        reward = FlowGRPOServer(url, key="scores", batch_size=3, **ONCE)
        values, parts = reward.score(GREYS, PROMPTS, [{"tag": "colors", "include": []}] * 4)
        np.testing.assert_allclose(values, LEVELS, atol=0.01)
        # group_rewards is no number an image.
        assert parts.keys() == {"rewards", "strict_rewards"} and parts["rewards"].tolist() == [1] * 4
        assert len(asked) == 2 and (reward.name, reward.version) == ("flow_grpo_scores", "1-flow_grpo")
        with pytest.raises(ValueError, match="the answer has no outputs, it has scores, rewards"):
            FlowGRPOServer(url, **ONCE).score(GREYS, PROMPTS, [{}] * 4)
    with (
        answering(lambda *_: (200, pickle.dumps({"outputs": [1.0]}))) as (url, _),
        pytest.raises(ValueError, match="the answer has 1 scores, expected 4"),
    ):
        FlowGRPOServer(url, **ONCE).score(GREYS, PROMPTS, [{}] * 4)


class Runs:
    """Makes a list longer when it is unpickled."""

    done: list[int] = []  # noqa: RUF012

    def __reduce__(self) -> Any:
        return Runs.done.append, (1,)


@pytest.mark.parametrize("protocol", range(1, 6))
@pytest.mark.parametrize(
    "value",
    [Runs(), {"outputs": [Runs()]}, np.float64(1), np.ones(3), collections.OrderedDict(a=1), {1, 2}, GREYS.dtype],
)
def test_no_pickle_runs_anything(value: Any, protocol: int) -> None:
    with pytest.raises(WireError, match=r"may run code|expected texts"):
        plain_pickle(pickle.dumps(value, protocol))
    assert Runs.done == []


@pytest.mark.parametrize("protocol", range(2, 6))
def test_plain_values_are_read_as_pickle_reads_them(protocol: int) -> None:
    shared = [0.25, -1.5]
    value = {
        "outputs": [1.0, 0, -3, 2**40, 300, 70000, True, False, None],
        "texts": ["ä", "x" * 300, b"bytes" if protocol > 2 else "bytes"],
        "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), shared, shared],
        "groups": {"a": [], "b": {}, "c": [[[1]]]},
    }
    assert plain_pickle(pickle.dumps(value, protocol)) == value


def test_damaged_pickles_are_refused() -> None:
    whole = pickle.dumps({"outputs": [0.5, 1, 2**40], "texts": ("a", None)})
    draw = random.Random(0)
    for _ in range(2000):
        body = bytearray(whole[: draw.randrange(len(whole) + 1)])
        for _ in range(draw.randrange(4)):
            if body:
                body[draw.randrange(len(body))] = draw.randrange(256)
        try:
            plain_pickle(bytes(body))
        except WireError:
            continue
    for body in (b"\x80\x04" + b"]" * 1_100_000 + b".", b"\x80\x04]r\xff\xff\xff\xffN", b"", b"\x80\x04]]a0."):
        with pytest.raises(WireError):
            plain_pickle(body)
