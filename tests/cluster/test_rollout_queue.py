"""Which weights and prompts each epoch gets, ahead of time and again after a restart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from prdp.cluster.rollout_queue import RolloutQueue
from prdp.prompts.stream import PromptStream
from prdp.types import PromptBatch, Rollout, Weights


class Source:
    """Ten prompts."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[str, dict[str, Any]]:
        return f"prompt {index}", {}


class Recorder:
    """A workforce that answers a request with what it was asked for."""

    def __init__(self) -> None:
        self.version = -1
        self.asked: list[tuple[int, int]] = []

    def publish(self, weights: Weights) -> None:
        assert weights.tensors["w"][0] == weights.version
        self.version = weights.version

    def submit(self, prompts: PromptBatch, *, images_per_prompt: int, seed: int) -> Answer:
        self.asked.append((prompts.epoch, self.version))
        return Answer((prompts.epoch, self.version, prompts.indices, images_per_prompt, seed))


class Answer:
    """A request that is done at once."""

    def __init__(self, told: Any) -> None:
        self.told = told

    def result(self, on_chunk: Any = None) -> Any:
        if self.told is None:
            raise OSError("scorer gone")
        return self.told


def weights(epoch: int) -> Weights:
    """Of a learner that updates twice an epoch."""
    return Weights.of(2 * epoch, {"w": np.array([2 * epoch], np.float32)})


def queue(
    max_staleness: int, epochs: int = 6, online: bool = True, drawn: bool = True
) -> tuple[Any, Recorder, PromptStream]:
    workforce, stream = Recorder(), PromptStream(Source(), seed=3)
    rollouts = RolloutQueue(
        workforce,  # type: ignore[arg-type]
        stream,
        prompts_per_epoch=3,
        images_per_prompt=2,
        seed=3,
        epochs=epochs,
        max_staleness=max_staleness,
        online=online,
        drawn=drawn,
    )
    return rollouts, workforce, stream


def run(rollouts: Any, first: int, last: int) -> list[Any]:
    """The rollouts of some epochs, each asked for when the loop would."""
    seen = []
    for epoch in range(first, last):
        rollouts.fill(epoch, weights(epoch))
        seen.append(rollouts.next())
    return seen


@pytest.mark.parametrize(
    ("max_staleness", "versions"),
    [(0, [0, 2, 4, 6, 8, 10]), (1, [0, 0, 2, 4, 6, 8]), (2, [0, 0, 0, 2, 4, 6]), (9, [0, 0, 0, 0, 0, 0])],
)
def test_each_epoch_gets_the_weights_that_the_staleness_says(max_staleness, versions):
    rollouts, workforce, _ = queue(max_staleness)
    seen = run(rollouts, 0, 6)
    assert [told[0] for told in seen] == list(range(6))
    assert [told[1] for told in seen] == versions
    assert workforce.asked == list(zip(range(6), versions, strict=True))


@pytest.mark.parametrize("max_staleness", [0, 2])
def test_offline_every_epoch_gets_the_first_weights_after_a_restart_too(max_staleness):
    straight = run(queue(max_staleness, online=False)[0], 0, 6)
    assert [told[1] for told in straight] == [0] * 6
    before = queue(max_staleness, online=False)[0]
    run(before, 0, 3)
    tensors, scalars = before.state(3)
    assert list(scalars["published"].values()) == [0]
    after = queue(max_staleness, online=False)[0]
    after.load_state(tensors, scalars)
    assert run(after, 3, 6) == straight[3:]


def test_prompts_do_not_depend_on_staleness():
    straight = [told[2] for told in run(queue(0)[0], 0, 6)]
    assert [told[2] for told in run(queue(2)[0], 0, 6)] == straight


def test_nothing_is_asked_for_beyond_the_last_epoch():
    rollouts, workforce, stream = queue(2, epochs=2)
    rollouts.fill(0, weights(0))
    assert workforce.asked == [(0, 0), (1, 0)]
    assert stream.cursor == 6


@pytest.mark.parametrize("max_staleness", [0, 1, 2])
@pytest.mark.parametrize("killed", [1, 2, 4])
def test_a_resumed_queue_asks_again_for_what_was_under_way(max_staleness, killed):
    straight = run(queue(max_staleness)[0], 0, 6)
    before = queue(max_staleness)[0]
    run(before, 0, killed)
    tensors, scalars = before.state(killed)
    assert scalars["prompt_cursor"] == 3 * killed
    assert len(tensors) == min(max_staleness, killed)
    after, _, stream = queue(max_staleness)
    after.load_state(tensors, scalars)
    assert stream.cursor == 3 * killed
    assert run(after, killed, 6) == straight[killed:]


def test_an_epoch_that_was_begun_is_asked_for_again_under_its_own_weights():
    straight = run(queue(0)[0], 0, 6)
    before = queue(0)[0]
    run(before, 0, 3)
    tensors, scalars = before.state(2, begun=True)
    assert (scalars["prompt_cursor"], scalars["published"], len(tensors)) == (6, {"2": 4}, 1)
    after = queue(0)[0]
    after.load_state(tensors, scalars)
    after.fill(2, Weights.of(5, {"w": np.array([5], np.float32)}))
    assert after.next() == straight[2]
    assert run(after, 3, 6) == straight[3:]


def test_a_rollout_that_failed_is_not_counted():
    rollouts, _, _ = queue(1)
    rollouts.fill(0, weights(0))
    rollouts._under_way[0].told = None
    with pytest.raises(OSError, match="scorer gone"):
        rollouts.next()
    assert rollouts.state(0)[1]["prompt_cursor"] == 0


def test_images_that_are_stored_ask_for_no_weights() -> None:
    """`Recorder.version` is -1 until something is published."""
    rollouts, workforce, stream = queue(1, epochs=2, drawn=False)
    assert rollouts.fill(0, weights(0)) == 0 and queue(0)[0].fill(0, weights(0)) == 4
    assert workforce.asked == [(0, -1), (1, -1)]
    assert rollouts.state(0) == ({}, {"prompt_cursor": 0, "published": {}})
    rollout = Rollout(PromptBatch(0, 0, ("a",), ({},)), 1, np.zeros((1, 2, 2, 3), np.uint8), 7, "")
    rollouts._under_way[0] = Answer(rollout)
    assert rollouts.next().weights_version == 0 and stream.cursor == 6
