"""What every learner shares: evidence, coefficients, accumulation, step; the arithmetic of a framework is its own."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from prdp.config import LearnerConfig
from prdp.diffusion.sampler import Keep
from prdp.diffusion.transitions import Transitions
from prdp.learners.guards import check_ratio, check_rollout
from prdp.learners.history import RewardHistory
from prdp.learners.precision import ATTEMPTS, BACK_OFF, NUDGE, SHORTFALL, check_noise, gradient_scale, spot_cells
from prdp.objectives import Coefficients, Trajectory, build_objective
from prdp.support.interruption import uninterrupted
from prdp.types import Float64, Int64, Rollout, Weights

Progress = Callable[[int], None]
Stepped = Callable[[dict[str, float]], None]
Evidence = dict[str, Float64]
"""Channel -> evidence of every cell, [n, T] or [n, draws]; 0 at cells that were left out."""


class Learner(ABC):
    """Minimises an objective on the evidence of a rollout, with peak memory of one microbatch.

    Args:
        transitions: the table that the rollouts were sampled with.
        config: optimizer, moving average, microbatch.
        objective: name and knobs, see `prdp.objectives`.
        precision: of the pass with gradient: float32, bfloat16 or float16. Passes without are float32 in any case.

    Raises:
        ValueError: an unknown objective, or knobs that it does not take.
    """

    def __init__(
        self, transitions: Transitions, config: LearnerConfig, objective: Mapping[str, Any], precision: str = "float32"
    ) -> None:
        self._transitions = transitions
        self._precision = precision
        self._noise: float | None = None
        self._noise_epoch: int | None = None
        self._step_weights: Float64 | None = None
        self._noise_told = False
        self._config = config
        self._objective = build_objective(objective)
        self._updates = 0
        self._row_weights: Float64 | None = None
        evidence = self._objective.evidence
        if isinstance(evidence, Trajectory) and evidence.step_weighting == "inverse_sensitivity":
            inverse = np.zeros(len(transitions))
            inverse[transitions.noisy] = 1.0 / transitions.sensitivity[transitions.noisy]
            self._row_weights = inverse / inverse[transitions.noisy].mean()
        keeps_history = "history" in self._objective.method.arrays
        self._history = RewardHistory(self._objective.knobs["buffer_size"]) if keeps_history else None

    @property
    def version(self) -> int:
        """Number of optimizer steps taken."""
        return self._updates

    @property
    def keep(self) -> Keep:
        """What rollouts have to hold for this learner."""
        return "trajectory" if isinstance(self._objective.evidence, Trajectory) else "final_latents"

    def cells(self, rollout: Rollout) -> tuple[int, int]:
        """Shape of the rollout's evidence: images, and steps or draws of each."""
        evidence = self._objective.evidence
        return len(rollout), rollout.log_ratio.shape[1] if isinstance(evidence, Trajectory) else evidence.draws

    @abstractmethod
    def weights(self) -> Weights:
        """The weights to sample with."""

    @abstractmethod
    def evaluation_weights(self) -> Weights:
        """The weights to evaluate and export: the moving average where one is kept."""

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Everything that the next update depends on: arrays, and JSON-able scalars; the same for every framework.

        Returns:
            {"weights/<name>", "optimizer/{step, exp_avg, exp_avg_sq}/<name>", "ema/<name>": array} and what the
            history of rewards holds, {"updates": count, ...}
        """
        tensors, scalars = self._history.state() if self._history is not None else ({}, {})
        return self._tensors() | tensors, {"updates": self._updates, **scalars}

    def load_state(self, tensors: Mapping[str, np.ndarray], scalars: Mapping[str, Any]) -> None:
        """Continue where `state` was taken, by this framework or another.

        Raises:
            ValueError: tensors missing or of another shape; names them.
        """
        if self._history is not None:
            self._history.load_state(tensors, scalars)
        self._load_tensors(tensors, int(scalars["updates"]))

    @abstractmethod
    def _tensors(self) -> dict[str, np.ndarray]:
        """Weights, optimizer and moving average, by the names of `state`."""

    @abstractmethod
    def _load_tensors(self, tensors: Mapping[str, np.ndarray], updates: int) -> None:
        """Take back `_tensors` as they were after so many updates."""

    @abstractmethod
    def _encode(self, prompts: Sequence[str]) -> Any:
        """Conditions of the prompts."""

    @abstractmethod
    def _scaled(self, conditions: Any, factor: float) -> Any:
        """Conditions whose numbers are multiplied by a factor near 1."""

    @abstractmethod
    def _evidence(self, rollout: Rollout, states: Any, cells: Int64, *, reference: bool = False) -> Evidence:
        """The objective's channels at the given flat cells, without gradient, computed in float32.

        Denoising evidence also for the reference.
        """

    @abstractmethod
    def _accumulate(
        self, rollout: Rollout, states: Any, cells: Int64, tables: Evidence, progress: Progress | None
    ) -> Evidence:
        """Gradient of sum(table * evidence) over channels and cells, by microbatches; the evidence seen on the way."""

    @abstractmethod
    def _unscale(self, scale: float) -> bool:
        """Divide the accumulated gradient by a power of two; whether all of it is finite."""

    @abstractmethod
    def _apply(self, learning_rate: float, ema_decay: float) -> dict[str, float]:
        """Clip the accumulated gradient, step, fold into the average.

        Returns:
            grad_norm before clipping and parameters_without_gradient.

        Raises:
            ValueError: the gradient is not finite; names a tensor. Nothing is stepped.
        """

    def update(
        self, rollout: Rollout, progress: Progress | None = None, stepped: Stepped | None = None
    ) -> dict[str, float]:
        """One optimizer step on the full batch.

        Coefficients need the evidence, which takes a pass over the cells, and the gradient takes another. The first
        pass is left out where the coefficients are known without: for the first update after an on-policy rollout,
        whose log-ratios the sampler has stored, and for channels that the loss is linear in.

        In half precision the gradient alone is computed in it; what coefficients, clips and metrics are computed from
        is float32 evidence, whose error is measured on a few cells at the first update of every rollout.

        Args:
            rollout: scored, and holding what `keep` says.
            progress: called with the number of cells done after each microbatch.
            stepped: called with the metrics once the step is taken, as one with it: no interruption comes between.

        Raises:
            RatioError: on an on-policy rollout the recomputed log-ratio is not the stored one; nothing is stepped.
            UserError: a clip acts, and its range is below the error of the evidence.
            ValueError: the rollout is not scored, has no group with a pair, or the loss or gradient is not finite.
        """
        start = time.perf_counter()
        metrics = check_rollout(rollout, self.keep, self._objective.method.compares_images)
        assert rollout.rewards is not None
        history_of_epoch = (rollout.prompts.epoch, rollout.image_prompts, rollout.rewards)
        data: dict[str, np.ndarray] = {"rewards": rollout.rewards, "group_ids": rollout.group_ids}
        if self._history is not None:
            data["history"] = self._history.including(*history_of_epoch)
        states = self._encode(rollout.prompts.texts)
        self._step_weights = None if self._row_weights is None else self._row_weights[rollout.steps]

        channels, linear = self._objective.method.channels, self._objective.method.linear
        unknown = dict.fromkeys(channels, np.zeros(self.cells(rollout)))
        stored: Evidence = {}
        cells = np.arange(unknown[channels[0]].size)
        if self.keep == "trajectory":
            data["log_ratio_old"] = rollout.log_ratio.astype(np.float64)
            if rollout.weights_version == self._updates:
                stored["log_ratio"] = data["log_ratio_old"]
        else:
            # Images that the loss never mentions have no coefficient, whatever the evidence: no pass for them.
            table = self._coefficients(unknown, data | {"denoising_ref": unknown["denoising"]}).tables["denoising"]
            cells = np.flatnonzero(table) if table.any() else cells
            if "denoising_ref" in self._objective.method.arrays:
                data["denoising_ref"] = self._evidence(rollout, states, cells, reference=True)["denoising"]

        half, on_policy = self._precision != "float32", rollout.weights_version == self._updates
        checked: dict[str, float] = {}
        if half and self.keep == "trajectory":
            if on_policy or rollout.prompts.epoch != self._noise_epoch:
                checked = self._spot_check(rollout, states, data["log_ratio_old"], on_policy)
            if not on_policy:
                self._check_clip()
            # The pass with gradient would tell a drift that is rounding.
            linear = tuple(name for name in linear if name != "log_ratio")
        if all(name in stored or name in linear for name in channels):
            now = unknown | stored
        else:
            now = stored = self._evidence(rollout, states, cells)
        result = self._coefficients(now, data)
        recomputed, scale = self._accumulate_scaled(rollout, states, cells, result.tables, progress)
        if on_policy and not half and "log_ratio" in recomputed:
            self._check_ratio(rollout, data["log_ratio_old"], recomputed["log_ratio"])
        if stored.keys() < set(channels):
            now = recomputed | stored
            result = self._coefficients(now, data)
        with uninterrupted():
            metrics |= self._step()
            if self._history is not None:
                self._history.remember(*history_of_epoch)
            metrics |= result.metrics | self._policy_metrics(now, data, cells)
            metrics["loss"] = result.loss
            metrics |= checked | ({"gradient_scale": scale} if scale != 1.0 else {})
            if stored and not half:
                metrics["ratio_error"] = max(float(np.abs(recomputed[name] - stored[name]).max()) for name in stored)
            metrics["time/learn"] = time.perf_counter() - start
            if stepped is not None:
                stepped(metrics)
        return metrics

    def _check_ratio(self, rollout: Rollout, stored: Float64, recomputed: Float64) -> None:
        check_ratio(
            stored,
            recomputed,
            tolerance=self._config.ratio_tolerance,
            update=self._updates,
            steps=rollout.steps,
            times=self._transitions.times,
        )

    def _spot_check(self, rollout: Rollout, states: Any, stored: Float64, on_policy: bool) -> dict[str, float]:
        """Recompute a few cells with all roundings otherwise and, of an on-policy rollout, against what is stored."""
        images, columns = stored.shape
        cells = spot_cells(images, columns, self._config.microbatch)
        rows = np.unravel_index(cells, stored.shape)
        again = self._evidence(rollout, states, cells)
        nudged = self._evidence(rollout, self._scaled(states, NUDGE), cells)["log_ratio"]
        noise, weights = SHORTFALL * np.abs(again["log_ratio"] - nudged), self._step_weights
        metrics = {}
        if on_policy:
            seen = np.zeros_like(stored)
            seen[rows] = stored[rows]
            self._check_ratio(rollout, seen, again["log_ratio"])
            error = np.abs(again["log_ratio"] - seen)
            noise = np.maximum(noise, error)
            metrics["ratio_error"] = float(error.max())
        self._noise = metrics["evidence_noise"] = float((noise if weights is None else noise * weights).max())
        self._noise_epoch = rollout.prompts.epoch
        if not on_policy:
            return metrics
        # Rounding of the pass with gradient adds up in a square, so that it would tell a KL that is not there.
        return metrics | ({"kl_ref": float(again["kl_ref"][rows].mean())} if "kl_ref" in again else {})

    def _check_clip(self) -> None:
        """Clips act on rollouts of another policy: compare their range with the error last measured."""
        clip_range = self._objective.knobs.get("clip_range")
        if self._noise is not None and clip_range is not None:
            self._noise_told = check_noise(
                self._noise, clip_range, precision=self._precision, update=self._updates, told=self._noise_told
            )

    def _accumulate_scaled(
        self, rollout: Rollout, states: Any, cells: Int64, tables: Evidence, progress: Progress | None
    ) -> tuple[Evidence, float]:
        """The gradient and the evidence seen on the way; and by how much it was scaled, lest float16 underflow."""
        if self._precision != "float16":
            return self._accumulate(rollout, states, cells, tables, progress), 1.0
        latents = rollout.latents[:1, 0] if self.keep == "trajectory" else rollout.final_latents
        assert latents is not None
        scale = gradient_scale(tables, int(np.prod(latents.shape[1:])))
        for attempt in range(ATTEMPTS):
            scale *= BACK_OFF if attempt else 1.0
            scaled = {name: table * scale for name, table in tables.items()}
            recomputed = self._accumulate(rollout, states, cells, scaled, progress)
            if self._unscale(scale):
                break
        return recomputed, scale

    def _coefficients(self, channels: Evidence, data: Mapping[str, np.ndarray]) -> Coefficients:
        result = self._objective.coefficients(channels, data, self._step_weights)
        if not np.isfinite(result.loss):
            raise ValueError(f"the loss of update {self._updates} is {result.loss}")
        return result

    def _microbatches(self, cells: Int64, columns: int) -> Iterator[tuple[Int64, Int64]]:
        """Rows and columns of every microbatch of flat cells; cells of different steps share a batch."""
        for begin in range(0, len(cells), self._config.microbatch):
            yield np.divmod(cells[begin : begin + self._config.microbatch], columns)

    def _step(self) -> dict[str, float]:
        warmup = self._config.warmup_updates
        rate = self._config.learning_rate * min(1.0, (self._updates + 1) / warmup if warmup else 1.0)
        # A short memory at first, so that the untrained start fades from the average.
        decay = min(self._config.ema_decay, (2 + self._updates) / (11 + self._updates))
        metrics = self._apply(rate, decay)
        self._updates += 1
        return metrics | {"learning_rate": rate}

    def _policy_metrics(self, now: Evidence, data: Mapping[str, np.ndarray], cells: Int64) -> dict[str, float]:
        if "denoising" in now:
            return {"denoising_error": -float(now["denoising"].ravel()[cells].mean())}
        difference = now["log_ratio"] - data["log_ratio_old"]
        metrics = {
            "logratio": float(difference.mean()),
            "logratio_ref": float(now["log_ratio"].mean()),
            "approx_kl": float((np.expm1(difference) - difference).mean()),
        }
        return metrics | ({"kl_ref": float(now["kl_ref"].mean())} if "kl_ref" in now else {})


def section(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint under a prefix, without it."""
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
