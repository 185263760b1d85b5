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

    Args:
        length: rewards a prompt.
        terms: M where a reward is the values of its M terms; None where it is a number.
    """

    def __init__(self, length: int, terms: int | None = None) -> None:
        self._shape = (length,) if terms is None else (length, terms)
        self._epoch = -1
        self._rewards: dict[int, Float64] = {}

    def including(self, epoch: int, prompts: Sequence[str], rewards: Float64) -> Float64:
        """The history of each image's prompt once this epoch is remembered, NaN where none is.

        Args:
            epoch: that the images belong to.
            prompts: of each image, length n.
            rewards: float64 [n], or [n, M].

        Returns:
            float64 [n, length], or [n, length, M].
        """
        merged = self._merged(epoch, prompts, rewards)
        rows = np.full((len(prompts), *self._shape), np.nan)
        for row, prompt in zip(rows, prompts, strict=True):
            known = merged[_key(prompt)]
            row[: len(known)] = known
        return rows

    def remember(self, epoch: int, prompts: Sequence[str], rewards: Float64) -> None:
        """Take in the rewards of an epoch; for further updates on the same epoch nothing changes."""
        self._rewards |= self._merged(epoch, prompts, rewards)
        self._epoch = epoch

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """{"history/keys": uint64 [prompts], "history/rewards": float64 [prompts, length], or [prompts, length, M]},
        {"history_epoch": int}.
        """
        rows = np.full((len(self._rewards), *self._shape), np.nan)
        for row, known in zip(rows, self._rewards.values(), strict=True):
            row[: len(known)] = known
        keys = np.array(list(self._rewards), np.uint64)
        return {"history/keys": keys, "history/rewards": rows}, {"history_epoch": self._epoch}

    def load_state(self, tensors: Mapping[str, np.ndarray], scalars: Mapping[str, Any]) -> None:
        """Continue where `state` was taken.

        Raises:
            ValueError: the checkpoint is of a run without a history, or with one of other terms.
        """
        if "history/keys" not in tensors or "history_epoch" not in scalars:
            raise ValueError("the checkpoint has no tensor 'history/keys': its objective kept no history of rewards")
        rewards = tensors["history/rewards"]
        if rewards.shape[2:] != self._shape[1:]:
            shapes = (self._shape[1:], rewards.shape[2:])
            here, there = (f"{shape[0]} terms" if shape else "one number" for shape in shapes)
            raise ValueError(
                f"the checkpoint's tensor 'history/rewards' has {there} a reward, expected {here}: "
                "objective.normalise_terms or the reward's terms differ"
            )
        self._epoch = int(scalars["history_epoch"])
        self._rewards = {
            int(key): row[~np.isnan(row.reshape(len(row), -1)).any(1)]
            for key, row in zip(tensors["history/keys"], rewards, strict=True)
        }

    def _merged(self, epoch: int, prompts: Sequence[str], rewards: Float64) -> dict[int, Float64]:
        """The histories of the prompts given, this epoch's rewards last."""
        nothing = np.empty((0, *self._shape[1:]))
        merged = {_key(prompt): [self._rewards.get(_key(prompt), nothing)] for prompt in prompts}
        if epoch != self._epoch:
            for prompt, reward in zip(prompts, rewards, strict=True):
                merged[_key(prompt)].append(np.asarray(reward, np.float64)[None])
        joined = {key: np.concatenate(known) for key, known in merged.items()}
        return {key: known[max(len(known) - self._shape[0], 0) :] for key, known in joined.items()}


def _key(prompt: str) -> int:
    return int.from_bytes(hashlib.blake2b(prompt.encode(), digest_size=8).digest(), "little")
