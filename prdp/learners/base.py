"""What every learner shares: evidence, coefficients, accumulation, step; the arithmetic of a framework is its own."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from prdp.config import LearnerConfig, ObjectiveConfig
from prdp.diffusion.transitions import Transitions
from prdp.interruption import uninterrupted
from prdp.learners.guards import RatioError, check_rewards
from prdp.objectives import coefficients
from prdp.types import Float64, Int64, Rollout, Weights

Progress = Callable[[int], None]


class Learner(ABC):
    """Minimises an objective on the log-ratios of stored trajectories, with peak memory of one microbatch.

    Args:
        transitions: the table that the rollouts were sampled with.
        config: optimizer, moving average, microbatch.
        objective: name and knobs.
    """

    def __init__(self, transitions: Transitions, config: LearnerConfig, objective: ObjectiveConfig) -> None:
        self._transitions = transitions
        self._config = config
        self._objective = objective
        self._updates = 0
        self._step_weights = _step_weights(objective.step_weighting, transitions)

    @property
    def version(self) -> int:
        """Number of optimizer steps taken."""
        return self._updates

    @abstractmethod
    def weights(self) -> Weights:
        """The weights to sample with."""

    @abstractmethod
    def evaluation_weights(self) -> Weights:
        """The weights to evaluate and export: the moving average where one is kept."""

    @abstractmethod
    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Everything that the next update depends on: arrays, and JSON-able scalars; the same for every framework.

        Returns:
            {"weights/<name>", "optimizer/{step, exp_avg, exp_avg_sq}/<name>", "ema/<name>": array}, {"updates": count}
        """

    @abstractmethod
    def load_state(self, tensors: Mapping[str, np.ndarray], scalars: Mapping[str, Any]) -> None:
        """Continue where `state` was taken, by this framework or another.

        Raises:
            ValueError: tensors missing or of another shape; names them.
        """

    @abstractmethod
    def _encode(self, prompts: Sequence[str]) -> Any:
        """Text states of the prompts, [prompts, tokens, width]."""

    @abstractmethod
    def _evidence(self, rollout: Rollout, states: Any) -> Float64:
        """log pi_theta / pi_ref of every cell, [n, T]."""

    @abstractmethod
    def _accumulate(self, rollout: Rollout, states: Any, table: Float64, progress: Progress | None) -> Float64:
        """Gradient of sum(table * evidence), microbatch by microbatch; returns the evidence seen on the way."""

    @abstractmethod
    def _apply(self, learning_rate: float, ema_decay: float) -> dict[str, float]:
        """Clip the accumulated gradient, step, fold into the average.

        Returns:
            grad_norm before clipping and parameters_without_gradient.

        Raises:
            ValueError: the gradient is not finite; names a tensor. Nothing is stepped.
        """

    def update(self, rollout: Rollout, progress: Progress | None = None) -> dict[str, float]:
        """One optimizer step on the full batch.

        The first update after an on-policy rollout takes its evidence from the sampler and needs one pass over the
        cells, later ones need two.

        Args:
            rollout: scored, with trajectories.
            progress: called with the number of cells done after each microbatch.

        Raises:
            RatioError: on an on-policy rollout the recomputed log-ratio is not the stored one; nothing is stepped.
            ValueError: the rollout is not scored, has no group with a pair, or the loss or gradient is not finite.
        """
        start = time.perf_counter()
        metrics = check_rewards(rollout)
        assert rollout.rewards is not None
        old = rollout.log_ratio.astype(np.float64)
        on_policy = rollout.weights_version == self._updates
        states = self._encode(rollout.prompts.texts)
        now = old if on_policy else self._evidence(rollout, states)
        result = coefficients(
            self._objective.name,
            now,
            old,
            rollout.rewards,
            rollout.group_ids,
            step_weights=self._step_weights,
            beta=self._objective.beta,
            clip_range=self._objective.clip_range,
        )
        if not np.isfinite(result.loss):
            raise ValueError(f"the loss of update {self._updates} is {result.loss}")
        recomputed = self._accumulate(rollout, states, result.table, progress)
        if on_policy:
            self._check_ratio(old, recomputed)
        with uninterrupted():
            metrics |= self._step()
        metrics |= result.metrics | self._policy_metrics(now, old)
        metrics["loss"] = result.loss
        metrics["ratio_error"] = float(np.abs(recomputed - now).max())
        metrics["time/learn"] = time.perf_counter() - start
        return metrics

    def _cells(self, rollout: Rollout) -> Iterator[tuple[Int64, Int64]]:
        """Rows (image, step) of every microbatch; cells of different steps share a batch."""
        count, steps = rollout.log_ratio.shape
        cells = np.arange(count * steps)
        for begin in range(0, len(cells), self._config.microbatch):
            yield np.divmod(cells[begin : begin + self._config.microbatch], steps)

    def _check_ratio(self, stored: Float64, recomputed: Float64) -> None:
        error = np.abs(stored - recomputed)
        worst = float(error.max())
        if not worst <= self._config.ratio_tolerance:
            image, step = np.unravel_index(int(error.argmax()), error.shape)
            raise RatioError(
                f"at update {self._updates} the log-ratio of an on-policy rollout differs by {worst:.3g} from the "
                f"stored one (learner.ratio_tolerance={self._config.ratio_tolerance:g}), worst at image {image}, "
                f"step {step} (timestep {self._transitions.timesteps[step]}): stored {stored[image, step]:.6g}, "
                f"recomputed {recomputed[image, step]:.6g}. Sampler and learner do not compute the same "
                "policy: weights, precision or guidance differ"
            )

    def _step(self) -> dict[str, float]:
        warmup = self._config.warmup_updates
        rate = self._config.learning_rate * min(1.0, (self._updates + 1) / warmup if warmup else 1.0)
        # A short memory at first, so that the untrained start fades from the average.
        decay = min(self._config.ema_decay, (2 + self._updates) / (11 + self._updates))
        metrics = self._apply(rate, decay)
        self._updates += 1
        return metrics | {"learning_rate": rate}

    def _policy_metrics(self, now: Float64, old: Float64) -> dict[str, float]:
        difference = now - old
        scaled = difference if self._step_weights is None else difference * self._step_weights
        clip_range = self._objective.clip_range
        return {
            "logratio": float(difference.mean()),
            "logratio_ref": float(now.mean()),
            "approx_kl": float((np.expm1(difference) - difference).mean()),
            "clipfrac": float((np.abs(scaled) > clip_range).mean()) if clip_range is not None else 0.0,
        }


def section(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint under a prefix, without it."""
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}


def _step_weights(weighting: str, transitions: Transitions) -> Float64 | None:
    if weighting == "uniform":
        return None
    if weighting == "inverse_sensitivity":
        inverse = 1.0 / transitions.sensitivity
        return inverse / inverse.mean()
    raise ValueError(f"objective.step_weighting is {weighting!r}, expected uniform or inverse_sensitivity")
