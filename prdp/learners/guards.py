"""Checks that stop or name what would otherwise fail in silence."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from prdp.types import Rollout

log = logging.getLogger(__name__)


class RatioError(RuntimeError):
    """On an on-policy rollout the recomputed log-ratio is not the stored one."""


def check_rewards(rollout: Rollout) -> dict[str, float]:
    """Counts of what makes a batch teach less than it seems to.

    Returns:
        {"rewards_constant": 1.0 when all rewards of the batch are equal, else 0.0}

    Raises:
        ValueError: no rewards, no trajectory, or groups too small to make a pair.
    """
    if rollout.rewards is None:
        raise ValueError("the rollout has no rewards: score it before learning from it")
    if rollout.log_ratio.shape[1] == 0:
        raise ValueError("the rollout has no trajectories: sample it with trajectory=True")
    if rollout.images_per_prompt < 2:
        raise ValueError(f"images_per_prompt is {rollout.images_per_prompt}: a group of one image makes no pair")
    if not np.isfinite(rollout.rewards).all():
        raise ValueError(f"{(~np.isfinite(rollout.rewards)).sum()} of {len(rollout)} rewards are not finite")
    constant = bool(np.ptp(rollout.rewards) == 0)
    if constant:
        log.warning(
            "all %d rewards of epoch %d are %g: nothing to learn from", len(rollout), rollout.prompts.epoch,
            rollout.rewards[0],
        )
    return {"rewards_constant": float(constant)}


def unlearned(gradients: Mapping[str, Any], first: bool) -> list[str]:
    """Names of learning tensors whose gradient is None or zero everywhere; tells the log of them.

    At the `first` update a zero gradient is no fault: LoRA starts with one factor at zero, which hides the other.
    """
    without = [name for name, value in gradients.items() if value is None or not (first or value.any())]
    if without:
        log.warning("%d of %d tensors got no gradient, first: %s", len(without), len(gradients), without[0])
    return without
