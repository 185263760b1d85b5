"""A batch for golden tests, and an objective's loss and coefficients at it."""

from __future__ import annotations

from typing import Any

import numpy as np

from prdp.objectives import Coefficients, build_objective

GROUPS, SIZE, STEPS = 3, 4, 5


def batch(seed: int = 0, spread: float = 0.05) -> dict[str, np.ndarray]:
    """Every array that an objective may ask for: 3 groups of 4 images, 5 steps or draws."""
    rng = np.random.default_rng(seed)
    shape = (GROUPS * SIZE, STEPS)
    old = 0.1 * rng.normal(size=shape)
    history = rng.normal(size=(GROUPS * SIZE, 8))
    history[: 2 * SIZE, 3:] = np.nan
    importance = spread * rng.normal(size=shape)
    arrays = {
        "log_ratio": old + importance,
        "log_importance": importance,
        "log_ratio_old": old,
        "kl_ref": rng.random(shape),
        "denoising": -rng.random(shape),
        "denoising_ref": -rng.random(shape),
        "denoising_sampled": -rng.random(shape),
        "denoising_old": -rng.random(shape),
        "kl_old_policy": rng.random(shape),
        "log_ratio_old_policy": 0.1 * rng.normal(size=shape),
        "log_likelihood": -1.0 + importance,
        "log_likelihood_sampled": -np.ones(shape),
        "positive": -rng.random(shape),
        "negative": -rng.random(shape),
        "rewards": rng.normal(size=shape[0]),
        "group_ids": np.repeat(np.arange(GROUPS), SIZE),
        "history": history,
        "score": spread * rng.normal(size=shape),
    }
    return arrays | {
        "guarded_importance": spread * rng.normal(size=shape),
        "kl_old": 2e-5 * rng.random(shape),
        "step_size": 0.05 + 0.1 * rng.random(shape),
        "reward_terms": rng.normal(size=(shape[0], 2)),
        "reward_weights": np.array([2.0, -0.5]),
        "noise_weight": 0.5 + rng.random(shape),
    }


def evaluate(name: str, arrays: dict[str, np.ndarray], **knobs: Any) -> Coefficients:
    """The objective `name` at the arrays."""
    return build_objective({"name": name, **knobs}).coefficients(arrays, arrays)


def numeric_tables(name: str, arrays: dict[str, np.ndarray], **knobs: Any) -> dict[str, np.ndarray]:
    """d loss / d evidence by central differences."""
    found = {}
    for channel in evaluate(name, arrays, **knobs).tables:
        table = np.empty_like(arrays[channel])
        for index in np.ndindex(*table.shape):
            ends = []
            for sign in (1, -1):
                moved = arrays[channel].copy()
                moved[index] += sign * 1e-6
                ends.append(evaluate(name, {**arrays, channel: moved}, **knobs).loss)
            table[index] = (ends[0] - ends[1]) / 2e-6
        found[channel] = table
    return found
