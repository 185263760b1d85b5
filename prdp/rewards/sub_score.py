"""One sub-score of another reward as the reward: an aspect, such as colour, that a model is trained on alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prdp.rewards import check_reward
from prdp.rewards.base import Reward, identity_of, waits_of
from prdp.rewards.names import shown
from prdp.rewards.scoring import scored
from prdp.support.suggest import did_you_mean
from prdp.support.targets import TARGET, locate
from prdp.types import Float64, UInt8

CODE_VERSION = "1"
NOT_APPLICABLE = 0.0
"""The reward where a sub-score is NaN: equal for all images of the prompt, so that they tie."""
WHOLE = "whole"
"""The sub-score that holds the other reward's own score."""


class SubScore:
    """A sub-score of another reward, by its name; the others stay sub-scores, and the whole is one, too.

    NaN says that the sub-score does not apply. That is so for a prompt, or it is not: all its images then get
    `NOT_APPLICABLE`, and the group is a tie, which objectives that compare images leave out and count. A number for
    single images would rank them, and only the reward can know where they belong, so it is asked to say so.

    Args:
        name: of the sub-score.
        reward: that has it; a section of a configuration, built already.

    Raises:
        ValueError: no name, or `reward` is none.
    """

    def __init__(self, name: str, reward: Reward) -> None:
        _check_name(name)
        _check_is_reward(reward, callable(getattr(reward, "score", None)))
        self._aspect, self._reward = name, reward
        self.name = f"{reward.name}.{name}"
        self.version = f"{CODE_VERSION}-{reward.version}"
        self.waits_seconds = waits_of(reward)
        self.retries_itself = bool(getattr(reward, "retries_itself", False))

    @classmethod
    def check(cls, name: str, reward: Mapping[str, Any]) -> None:
        """Check the other reward as one that stands alone, and the name where its class says what it has.

        Raises:
            ValueError: no reward, one that cannot run, or a sub-score that it does not have; names those it has.
        """
        _check_name(name)
        _check_is_reward(reward, isinstance(reward, Mapping) and TARGET in reward)
        check_reward("reward", reward)
        try:
            known = getattr(locate(f"reward.{TARGET}", reward[TARGET]), "sub_score_names", None)
        except ValueError:
            return  # Only its own environment can import it.
        if known is not None:
            _check_known(name, known, f"{reward[TARGET].rpartition('.')[2]}")

    def identity(self) -> dict[str, Any]:
        """Name and version, and the terms of a reward that has some, by which its sub-scores are called."""
        inner = identity_of(self._reward)
        terms = {"terms": inner["terms"]} if "terms" in inner else {}
        return {"name": self.name, "version": self.version, **terms}

    def score(
        self, images: UInt8, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> tuple[Float64, dict[str, Float64]]:
        """Rewards float64 [B] of uint8 images [B, H, W, 3], and the other reward's sub-scores, float64 [B] each.

        Raises:
            RewardError: the other reward raised, or answered with something else than scores.
            ValueError: it has no such sub-score, or one that is NaN for some of a prompt's images and not for all.
        """
        called = f"reward '{self._reward.name}'"
        whole, parts = scored(self._reward, images, prompts, metadata, what=called)
        _check_known(self._aspect, parts, called)
        values = parts[self._aspect]
        absent = np.isnan(values)
        if absent.any() and not absent.all():
            _check_whole_groups(self._aspect, called, absent, prompts, metadata)
        return np.where(absent, NOT_APPLICABLE, values), {WHOLE: whole, **parts}


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not name:
        raise ValueError(f"name={name!r}: must be the name of a sub-score")


def _check_is_reward(reward: Any, it_is: bool) -> None:
    if not it_is:
        raise ValueError(
            f"reward={reward!r}: must be the section of a reward; on the command line reward@reward.reward=<option>"
        )


def _check_known(name: str, known: Any, reward: str) -> None:
    if name not in known:
        has = f"it has {', '.join(known)}" if len(known) else "it has none"
        raise ValueError(f"name={name}: {reward} has no such sub-score; {has}{did_you_mean(name, known)}")


def _check_whole_groups(
    name: str, reward: str, absent: np.ndarray, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
) -> None:
    groups: dict[tuple[str, str], list[bool]] = {}
    for key, one in zip(zip(prompts, map(repr, metadata), strict=True), absent.tolist(), strict=True):
        groups.setdefault(key, []).append(one)
    for (prompt, _), of_group in groups.items():
        if any(of_group) and not all(of_group):
            raise ValueError(
                f"sub-score '{name}' of {reward} is NaN for {sum(of_group)} of {len(of_group)} images of the prompt "
                f"{shown(prompt)}: NaN says that it does not apply to a prompt, so to none of its images or to all; "
                "an image that fails needs a number"
            )
