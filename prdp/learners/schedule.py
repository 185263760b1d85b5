"""The learning rate of each update: a warm-up, then constant, linear or cosine decay."""

from __future__ import annotations

import dataclasses
import math

from prdp.config import LearnerConfig


def learning_rate(config: LearnerConfig, update: int) -> float:
    """The rate of update number `update`, from 0.

    It rises linearly over `warmup_updates`, (u + 1) / warmup of `learning_rate`. The decays of transformers' schedules
    follow: linear, or half a cosine, that would be 0 at update `decay_updates`, and stays there.

    Raises:
        ValueError: a schedule that decays, without decay_updates.
    """
    warmup = config.warmup_updates
    rate = config.learning_rate * min(1.0, (update + 1) / warmup if warmup else 1.0)
    if config.schedule == "constant" or update < warmup:
        return rate
    if config.decay_updates is None:
        raise ValueError(f"schedule={config.schedule} needs decay_updates")
    passed = min(1.0, (update - warmup) / (config.decay_updates - warmup))
    return rate * (1.0 - passed if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * passed)))


def decaying_over(config: LearnerConfig, updates: int) -> LearnerConfig:
    """With `decay_updates`, where none are given, as the length of a run, in updates."""
    if config.schedule == "constant" or config.decay_updates is not None:
        return config
    return dataclasses.replace(config, decay_updates=updates)
