"""Rewards for the tests of the server, and a server on a thread."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from http_stub import running

from prdp.rewards.http_server import RewardServer
from prdp.rewards.wire import Limits
from prdp.types import UInt8


class Exact:
    """Depends on every pixel, the prompt and the metadata; the sub-score is NaN for images of even sum."""

    name, version = "exact", "3"

    def __init__(self) -> None:
        self.batches: list[int] = []

    def score(self, images: UInt8, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Any:
        self.batches.append(len(images))
        for meta in metadata:
            if "raise" in meta:
                raise {"value": ValueError, "key": KeyError}[meta["raise"]]("no such mood")
        sums = images.astype(np.float64).sum((1, 2, 3))
        rewards = np.sqrt(sums + 0.1) + [len(prompt) for prompt in prompts] + [meta["bonus"] for meta in metadata]
        if any("long" in meta for meta in metadata):
            rewards = np.append(rewards, 0.0)
        return rewards, {"odd": np.where(sums % 2 == 1, sums, np.nan)}


@contextlib.contextmanager
def serving(
    reward: Any, token: str = "", limits: Limits | None = None, kind: type[RewardServer] = RewardServer
) -> Iterator[RewardServer]:
    """A server on a free port of loopback."""
    server = kind(reward, "127.0.0.1", 0, token, limits)
    with running(server):
        yield server


def batch(count: int, seed: int = 0, side: int = 8) -> tuple[UInt8, list[str], list[dict[str, Any]]]:
    """Noise images uint8 [count, side, side + 1, 3], prompts and metadata."""
    images = np.random.default_rng(seed).integers(0, 256, (count, side, side + 1, 3), np.uint8)
    return images, [f"a färbig {'x' * i} \U0001f98a" for i in range(count)], [{"bonus": i / 7} for i in range(count)]
