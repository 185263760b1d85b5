"""What the log says about a rollout and the updates on it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from prdp.types import Rollout


def rollout_metrics(rollout: Rollout, waited_seconds: float) -> dict[str, float]:
    """Rewards, seconds, paces and weights of a scored rollout.

    Args:
        waited_seconds: that the loop waited for it.
    """
    seconds = rollout.seconds
    return {
        **reward_metrics(rollout),
        "time/wait": waited_seconds,
        "time/rollout": seconds["rollout"],
        "time/sample": seconds["sampling"],
        "time/score": seconds["score"],
        "time/bind": seconds.get("bind", 0.0),
        "images_per_second/sample": len(rollout) / max(seconds["sampling"], 1e-9),
        "images_per_second/score": len(rollout) / max(seconds["score"], 1e-9),
        "weights_version": rollout.weights_version,
    }


def reward_metrics(rollout: Rollout) -> dict[str, float]:
    """Mean and spread of the rewards, over all images and within groups, and the mean of every sub-score."""
    assert rollout.rewards is not None
    groups = rollout.rewards.reshape(len(rollout.prompts), rollout.images_per_prompt)
    metrics = {
        "reward/mean": float(rollout.rewards.mean()),
        "reward/std": float(rollout.rewards.std()),
        "reward/group_std": float(groups.std(axis=1).mean()),
    }
    for name, values in rollout.sub_scores.items():
        if not np.isnan(values).all():
            metrics[f"reward/{name}"] = float(np.nanmean(values))
    return metrics


def add_update(metrics: dict[str, float], update: Mapping[str, float]) -> None:
    """Several updates of one epoch: times add up, everything else is the last update's."""
    spent = metrics.get("time/learn", 0.0) + update["time/learn"]
    metrics |= update
    metrics["time/learn"] = spent
