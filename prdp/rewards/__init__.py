"""Rewards: black-box scorers of images, one file each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prdp.rewards.base import Reward
from prdp.targets import build


def build_reward(config: Mapping[str, Any]) -> Reward:
    """Build the reward of a configuration section {"_target_": dotted path, argument: value, ...}.

    Raises:
        ValueError: the target lacks `name`, `version` or `score`; the builder's own errors pass through.
    """
    reward = build("reward", config)
    missing = [part for part in ("name", "version", "score") if not hasattr(reward, part)]
    if missing:
        raise ValueError(f"reward {config.get('_target_')} has no {', '.join(missing)}: see prdp.rewards.base.Reward")
    return reward
