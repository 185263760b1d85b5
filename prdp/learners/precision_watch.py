"""How far a learner's evidence is off, measured on the way, and whether its clips can bear it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from prdp.config import LearnerConfig
from prdp.evidence.base import Channels, Of
from prdp.learners.engine import Batch, Engine, Progress
from prdp.learners.guards import check_ratio
from prdp.learners.precision import (
    ATTEMPTS,
    BACK_OFF,
    NUDGE,
    SHORTFALL,
    check_noise,
    check_rounding,
    gradient_scale,
    spot_cells,
)
from prdp.objectives import Objective
from prdp.types import Float64, Int64, Rollout


class PrecisionWatch:
    """Compares evidence with what a sampler has stored, and with itself under other roundings.

    Args:
        engine, objective, config: of the learner.
    """

    def __init__(self, engine: Engine, objective: Objective, config: LearnerConfig) -> None:
        self._engine, self._objective, self._config = engine, objective, config
        self._noise: float | None = None
        self._epoch: int | None = None
        self._told = False
        self._errors: dict[str, Float64] = {}
        self._measured: tuple[int, bool, Mapping[str, tuple[str, Of]]] | None = None

    def measured(self, epoch: int) -> bool:
        """Whether the last spot check was of the rollout of this epoch."""
        return epoch == self._epoch

    def check_ratio(self, rollout: Rollout, stored: Float64, recomputed: Float64, update: int) -> None:
        """Refuse evidence of an on-policy rollout that is not the stored one.

        Raises:
            RatioError: naming the cell that differs most.
        """
        evidence, transitions = self._objective.evidence, self._engine.transitions
        check_ratio(
            stored,
            recomputed,
            tolerance=self._config.ratio_tolerance,
            update=update,
            place=lambda image, column: evidence.place(rollout, transitions, image, column),
        )

    def spot_check(
        self, batch: Batch, guard: str, stored: Float64, on_policy: bool, weights: Float64 | None
    ) -> dict[str, float]:
        """Recompute a few cells with all roundings otherwise and, of an on-policy rollout, against what is stored.

        Where evidence is in less than float32, they are recomputed more exactly instead.

        Args:
            guard: the channel that is stored.
            stored: [n, T].
            weights: of the cells in what clips compare, [n, T] or broadcast; None for 1.

        Returns:
            evidence_noise; on-policy ratio_error and, where it is a channel, kl_ref too.

        Raises:
            RatioError: as `check_ratio`.
        """
        images, columns = stored.shape
        cells = spot_cells(images, columns, self._engine.microbatch)
        rows = np.unravel_index(cells, stored.shape)
        again = self._engine.evidence(batch, cells)
        if self._engine.evidence_precision == "float32":
            nudged = self._engine.evidence(self._engine.scaled(batch, NUDGE), cells, channels=(guard,))[guard]
            noise = SHORTFALL * np.abs(again[guard] - nudged)
        else:
            exact = self._engine.evidence(batch, cells, channels=(guard,), exact=True)[guard]
            noise = np.abs(again[guard] - exact)
        metrics = {}
        if on_policy:
            seen = np.zeros_like(stored)
            seen[rows] = stored[rows]
            self.check_ratio(batch.rollout, seen, again[guard], batch.update)
            error = np.abs(again[guard] - seen)
            noise = np.maximum(noise, error)
            metrics["ratio_error"] = float(error.max())
        self._noise = metrics["evidence_noise"] = float((noise if weights is None else noise * weights).max())
        self._epoch = batch.rollout.prompts.epoch
        if not on_policy:
            return metrics
        # Rounding of the pass with gradient adds up in a square, so that it would tell a KL that is not there.
        return metrics | ({"kl_ref": float(again["kl_ref"][rows].mean())} if "kl_ref" in again else {})

    def measure(self, batch: Batch, shape: tuple[int, int], sources: Mapping[str, tuple[str, Of]]) -> dict[str, float]:
        """Recompute a few cells of a rollout as evidence is and more exactly: what rounding does to it.

        Once for a rollout. And once more when policies that were the same have moved apart, those of the first update,
        too: the same weights err alike, and differences of their evidence have no error.

        Args:
            shape: of evidence, [n, T].
            sources: array of the loss -> the channel that it is, and whose.

        Returns:
            evidence_noise, the largest error of any array; nothing where coefficients depend on no evidence, or nothing
            new is to be measured.
        """
        measured = batch.rollout.prompts.epoch, batch.update == 0, sources
        if measured == self._measured:
            return {}
        self._measured = measured
        cells = spot_cells(*shape, self._engine.microbatch)
        rows = np.unravel_index(cells, shape)
        errors: dict[tuple[str, Of], Float64] = {}
        for channel, of in dict.fromkeys(sources.values()):
            rounded, exact = (
                self._engine.evidence(batch, cells, of=of, channels=(channel,), exact=one)[channel][rows]
                for one in (False, True)
            )
            errors[channel, of] = rounded - exact
        self._errors = {name: errors[source] for name, source in sources.items()}
        return {"evidence_noise": float(max(np.abs(error).max() for error in errors.values()))} if errors else {}

    def check_coefficients(
        self, channels: Channels, data: Mapping[str, np.ndarray], weights: Float64 | None, update: int, teaches: bool
    ) -> dict[str, float]:
        """How far coefficients move where evidence has once more the errors that were measured.

        Args:
            channels, data, weights: of `Objective.coefficients`.
            teaches: whether the batch has rewards that differ. Else coefficients are next to nothing, and rounding a
                large part of that: no fault of the precision.

        Returns:
            coefficient_noise, relative to the root mean square of a channel's coefficients.

        Raises:
            UserError: they would be rounding for a large part.
        """
        if not self._errors:
            return {}
        values = {**data, **channels}
        count = len(next(iter(self._errors.values())))
        shape = next(iter(channels.values())).shape
        # Errors of the same cell, so that what two passes round alike cancels here too.
        drawn = np.random.default_rng(update).integers(count, size=shape)
        moved = values | {name: values[name] + error[drawn] for name, error in self._errors.items()}
        before, after = (
            self._objective.coefficients(
                {name: one[name] for name in channels}, {name: one[name] for name in data}, weights
            ).tables
            for one in (values, moved)
        )
        moves = [np.linalg.norm(after[name] - table) / (np.linalg.norm(table) or 1.0) for name, table in before.items()]
        noise = float(np.max(moves))  # not a number where one is none
        if teaches:
            self._told = check_rounding(noise, self._engine.evidence_precision, update, self._told)
        return {"coefficient_noise": noise}

    def check_clip(self, update: int) -> None:
        """Clips act on rollouts of another policy: compare their range with the error last measured.

        Raises:
            UserError: the range is below the error.
        """
        clip_range = self._objective.knobs.get("clip_range")
        if self._noise is not None and clip_range is not None:
            self._told = check_noise(
                self._noise, clip_range, precision=self._engine.precision, update=update, told=self._told
            )


def accumulated(
    engine: Engine, batch: Batch, cells: Int64, tables: Mapping[str, Float64], progress: Progress | None
) -> tuple[Channels, float]:
    """As `Engine.accumulate`, and by how much the gradient was scaled meanwhile, lest float16 underflow."""
    if engine.precision != "float16":
        return engine.accumulate(batch, cells, tables, progress), 1.0
    scale = gradient_scale(tables, int(np.prod(engine.policy.latent_shape)))
    for attempt in range(ATTEMPTS):
        scale *= BACK_OFF if attempt else 1.0
        scaled = {name: table * scale for name, table in tables.items()}
        recomputed = engine.accumulate(batch, cells, scaled, progress)
        if engine.unscale(scale):
            break
    return recomputed, scale
