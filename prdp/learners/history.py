"""The latest rewards of every prompt, for objectives that standardise a reward by its own prompt's."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prdp.types import Float64


class RewardHistory:
    """Remembers up to `length` rewards a prompt, over the whole run; part of the learner's state.

    Prompts are told apart by their text, so that one that comes back, or stands twice in an epoch, has one history.
    What is remembered depends on the order of epochs and of prompts in them, and on nothing else.
    """

    def __init__(self, length: int) -> None:
        self._length = length
        self._epoch = -1
        self._rewards: dict[int, list[float]] = {}

    def including(self, epoch: int, prompts: Sequence[str], rewards: Float64) -> Float64:
        """The history of each image's prompt once this epoch is remembered, float64 [n, length], NaN where none is.

        Args:
            epoch: that the images belong to.
            prompts: of each image, length n.
            rewards: float64 [n].
        """
        merged = self._merged(epoch, prompts, rewards)
        rows = np.full((len(prompts), self._length), np.nan)
        for row, prompt in zip(rows, prompts, strict=True):
            known = merged[_key(prompt)]
            row[: len(known)] = known
        return rows

    def remember(self, epoch: int, prompts: Sequence[str], rewards: Float64) -> None:
        """Take in the rewards of an epoch; for further updates on the same epoch nothing changes."""
        self._rewards |= self._merged(epoch, prompts, rewards)
        self._epoch = epoch

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """{"history/keys": uint64 [prompts], "history/rewards": float64 [prompts, length]}, {"history_epoch": int}."""
        rows = np.full((len(self._rewards), self._length), np.nan)
        for row, known in zip(rows, self._rewards.values(), strict=True):
            row[: len(known)] = known
        keys = np.array(list(self._rewards), np.uint64)
        return {"history/keys": keys, "history/rewards": rows}, {"history_epoch": self._epoch}

    def load_state(self, tensors: Mapping[str, np.ndarray], scalars: Mapping[str, Any]) -> None:
        """Continue where `state` was taken.

        Raises:
            ValueError: the checkpoint is of a run without a history.
        """
        if "history/keys" not in tensors or "history_epoch" not in scalars:
            raise ValueError("the checkpoint has no tensor 'history/keys': its objective kept no history of rewards")
        self._epoch = int(scalars["history_epoch"])
        self._rewards = {
            int(key): row[~np.isnan(row)].tolist()
            for key, row in zip(tensors["history/keys"], tensors["history/rewards"], strict=True)
        }

    def _merged(self, epoch: int, prompts: Sequence[str], rewards: Float64) -> dict[int, list[float]]:
        """The histories of the prompts given, this epoch's rewards last."""
        merged = {_key(prompt): list(self._rewards.get(_key(prompt), [])) for prompt in prompts}
        if epoch != self._epoch:
            for prompt, reward in zip(prompts, rewards, strict=True):
                merged[_key(prompt)].append(float(reward))
        return {key: known[max(len(known) - self._length, 0) :] for key, known in merged.items()}


def _key(prompt: str) -> int:
    return int.from_bytes(hashlib.blake2b(prompt.encode(), digest_size=8).digest(), "little")
