"""How good a student's image will be, told from the prompt alone, before anything is drawn.

Ridge regression of the scores of the student's images on what its text encoder makes of the prompts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prdp.diffusion.conditions import Conditions
from prdp.support.errors import StartError
from prdp.support.storage import load_tensors, save_tensors
from prdp.types import Float64

_PENALTIES = 10.0 ** np.arange(-5.0, 1.5, 0.5)
"""Tried ones, as parts of the largest squared singular value of the features."""


def prompt_features(conditions: Conditions) -> Float64:
    """Float64 [n, D]: all that a network is given of n prompts, states of tokens as their mean, side by side."""
    parts = [
        np.asarray(values, np.float64).reshape(len(conditions), -1, values.shape[-1]).mean(axis=1)
        for _, values in sorted(conditions.to_arrays()[0].items())
        if values.ndim > 1
    ]
    return np.concatenate(parts, axis=1)


@dataclass(frozen=True)
class PromptEstimator:
    """A linear function of the features of a prompt.

    Attributes:
        weights: float64 [D].
        intercept: the score where all features are 0.
    """

    weights: Float64
    intercept: float

    def scores(self, conditions: Conditions) -> Float64:
        """Float64 [n]: expected scores of the student's images of n prompts.

        Raises:
            ValueError: prompts have other features than those that it learned from.
        """
        features = prompt_features(conditions)
        if features.shape[1] != len(self.weights):
            raise ValueError(f"prompts have {features.shape[1]} features, and {len(self.weights)} were learned from")
        return features @ self.weights + self.intercept

    def save(self, file: Path) -> str:
        """Write it; its digest."""
        save_tensors(file, {"weights": self.weights, "intercept": np.array([self.intercept])})
        return _digest(file)


def load_estimator(file: Path, digest: str) -> PromptEstimator:
    """What `save` wrote.

    Raises:
        StartError: the file is not there, is damaged, or is another one.
    """
    try:
        found = _digest(file)
        if found != digest:
            raise StartError(f"{file}: has the digest {found}, and the cascade was calibrated with {digest}")
        tensors: Mapping[str, np.ndarray] = load_tensors(file)
        return PromptEstimator(tensors["weights"], float(tensors["intercept"][0]))
    except (OSError, KeyError, ValueError) as error:
        raise StartError(f"{file}: is no estimator of prompts: {error}; calibrate anew") from error


def fit_estimator(features: Float64, scores: Float64) -> tuple[PromptEstimator, Float64]:
    """The estimator, and what it would have said of each prompt had it not learned from it.

    The penalty is the one whose left-out predictions are best. A threshold must be fitted on these predictions: of
    prompts that it learned from an estimator says too nearly what was there.

    Args:
        features: float64 [n, D], of at least 3 prompts.
        scores: float64 [n], of one image of each.

    Returns:
        (estimator, left-out predictions float64 [n]).

    Raises:
        ValueError: fewer than 3 prompts.
    """
    count = len(scores)
    if count < 3:
        raise ValueError(f"an estimator of prompts learns from 3 prompts or more (given {count})")
    middle, spread = features.mean(axis=0), features.std(axis=0)
    spread = np.where(spread > 1e-6 * np.abs(features).max(axis=0, initial=0.0) + 1e-12, spread, np.inf)
    left, values, right = np.linalg.svd((features - middle) / spread, full_matrices=False)
    centred = scores - scores.mean()
    best: tuple[float, Float64, Float64] | None = None
    for penalty in _PENALTIES * max(float(values[0]) ** 2, 1e-12):
        shrunk = values**2 / (values**2 + penalty)
        leverage = (left**2) @ shrunk + 1.0 / count
        # Of a linear smoother: the residual of a row that is left out is its residual divided by 1 - leverage.
        errors = (centred - left @ (shrunk * (left.T @ centred))) / (1.0 - leverage)
        if best is None or float(np.mean(errors**2)) < best[0]:
            weights = right.T @ (values / (values**2 + penalty) * (left.T @ centred)) / spread
            best = float(np.mean(errors**2)), weights, scores - errors
    assert best is not None
    _, weights, told = best
    return PromptEstimator(weights, float(scores.mean() - middle @ weights)), told


def _digest(file: Path) -> str:
    return hashlib.blake2b(file.read_bytes(), digest_size=12).hexdigest()
