"""Chunks in any order make the rollout of the whole request, and chunks that do not belong together are refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from cluster_stubs import StubSampler, content, differences, prompts

from prdp.cluster.rollout_builder import RolloutBuilder
from prdp.types import PromptBatch, Rollout


def sampled(request: PromptBatch, **changes: Any) -> Rollout:
    return dataclasses.replace(StubSampler().sample(request, 2, seed=1), **changes)


def test_chunks_in_any_order_equal_the_whole():
    request = prompts(5, offset=4)
    chunks = request.chunks(2)
    builder = RolloutBuilder(request, chunks, 2)
    rewards = np.arange(10.0)
    views = {}
    for index in (2, 0, 1):
        views[index] = builder.add_chunk(index, sampled(chunks[index], seconds={"sample": 1.5}))
    for index in (1, 2, 0):
        rows = slice(4 * index, 4 * index + 4)
        scored = builder.add_rewards(index, views[index], rewards[rows], {"half": rewards[rows] / 2})
        assert content(scored.rewards) == content(rewards[rows])
        assert content(scored.images) == content(sampled(chunks[index]).images)
    whole = builder.build(7.0, 5.0)
    assert not differences(whole, sampled(request).scored(rewards, {"half": rewards / 2}))
    assert whole.prompts == request
    assert whole.seconds == {"sample": 4.5, "rollout": 7.0, "sampling": 5.0}
    assert np.shares_memory(views[0].stored["latents"], whole.stored["latents"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights_version": 3}, r"epoch 3, prompts 2 to 3: weights_version is 3, and 0 in other chunks"),
        ({"weights_checksum": "ab"}, r"weights_checksum is 'ab', and '\w{16}' in other chunks"),
        (
            {"stored": {"final_latents": np.zeros((4, 1))}},
            r"prompts 2 to 3 holds .*'stored/final_latents'\], .* chunks hold \[",
        ),
        ({"images": np.zeros((4, 2, 2, 3), np.uint8)}, r"images is uint8 \[4, 2, 2, 3\], and uint8 \[n, 4, 4, 3\] in"),
    ],
)
def test_chunks_that_do_not_belong_together_are_refused(changes, message):
    request = prompts(4)
    chunks = request.chunks(2)
    builder = RolloutBuilder(request, chunks, 2)
    builder.add_chunk(0, sampled(chunks[0]))
    with pytest.raises(ValueError, match=message):
        builder.add_chunk(1, sampled(chunks[1], **changes))


def test_rewards_with_other_sub_scores_are_refused():
    request = prompts(4)
    chunks = request.chunks(2)
    builder = RolloutBuilder(request, chunks, 2)
    first, second = (builder.add_chunk(index, sampled(chunk)) for index, chunk in enumerate(chunks))
    builder.add_rewards(0, first, np.zeros(4), {"color": np.zeros(4)})
    with pytest.raises(ValueError, match=r"prompts 2 to 3: the reward gave the sub-scores \[\], and \['color'\] for"):
        builder.add_rewards(1, second, np.zeros(4), {})
