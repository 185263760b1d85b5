"""What half precision asks of a learner: gradients that do not underflow, and evidence whose error is told."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

import numpy as np

from prdp.support.errors import UserError
from prdp.types import Float64, Int64

log = logging.getLogger(__name__)

SCALED_ENTRY = 2.0**-5
"""Size that the largest coefficient per latent dim is scaled to: 2^21 below float16's largest number, 2^19 above its
smallest."""
BACK_OFF = 2.0**-6
"""Factor on the scale after a gradient that overflowed."""
ATTEMPTS = 4
"""How often a gradient is accumulated before an overflow counts as an error."""
NUDGE = 1.0 + 2.0**-22
"""Factor on the text states that makes roundings fall another way and changes next to nothing else."""
ROUNDED_COEFFICIENTS = 0.01, 0.1
"""Shares of the coefficients that rounding may move: what is told in the log, and what ends a run."""
TF32_TOLERANCE = 1e-3
"""Of log-ratios of trajectories: on an H100 they repeat within 1e-4, less exactly where the policy has moved far."""
SHORTFALL = 4.0
"""Factor on what changes under NUDGE: errors against float64 are 3 to 4 times as large, see docs/precision.md."""


def evidence_precision(chosen: str, gradient: str) -> str:
    """float32, tf32, bfloat16 or float16.

    Args:
        chosen: `learner.evidence_precision`.
        gradient: precision of the pass with gradient.
    """
    return gradient if chosen == "half" else chosen


def tells_evidence(gradient: str, evidence: str) -> bool:
    """Whether the pass with gradient is as exact as evidence has to be, so that coefficients may be found in it.

    Not in float16, where coefficients have to be known before, so that they can be scaled.
    """
    return gradient == "float32" or gradient == evidence != "float16"


def gradient_scale(tables: Mapping[str, Float64], dims: int) -> float:
    """The power of two that coefficients are multiplied by before a float16 backward pass; 1 where all are zero.

    Gradients of the network's output are of the size of coefficient / dims, which float16 rounds to zero below 6e-8.

    Args:
        tables: channel -> d loss / d evidence.
        dims: of one latent, which evidence is the mean over.
    """
    largest = max(float(np.abs(table).max()) for table in tables.values()) / dims
    if not (largest > 0 and math.isfinite(largest)):
        return 1.0
    return 2.0 ** math.floor(math.log2(SCALED_ENTRY) - math.log2(largest))


def spot_check_size(cells: int, microbatch: int) -> int:
    """Number of cells whose evidence is recomputed: one microbatch, and at least 16 where there are as many."""
    return min(cells, max(microbatch, 16))


def spot_cells(images: int, columns: int, microbatch: int) -> Int64:
    """The flat cells of a spot check: images evenly spread over the batch, columns in turn."""
    chosen = np.arange(spot_check_size(images * columns, microbatch))
    return np.asarray(chosen * images // len(chosen) * columns + chosen % columns, np.int64)


def check_rounding(noise: float, precision: str, update: int, told: bool) -> bool:
    """Compare what rounding does to coefficients with what a run can bear.

    Args:
        noise: share by which it moves them.
        precision: of evidence.
        told: whether the log has been told before; it is told once.

    Returns:
        whether it has been told now or before.

    Raises:
        UserError: they are rounding for a large part.
    """
    some, much = ROUNDED_COEFFICIENTS
    if noise <= some:
        return told
    fact = f"update {update}: rounding of evidence in {precision} moves the coefficients by {noise:.3g} of themselves"
    if not noise <= much:
        raise UserError(
            f"{fact} (coefficient_noise), more than {much:g}: set learner.evidence_precision=float32, or tf32, which "
            "rounds less than half precision does. From its checkpoints the run goes on so by checkpoint.resume=auto "
            "checkpoint.change=[learner.evidence_precision]"
        )
    if not told:
        log.warning("%s (coefficient_noise)", fact)
    return True


def check_noise(noise: float, clip_range: float, *, precision: str, update: int, told: bool = False) -> bool:
    """Compare the error of the evidence with the range that a clip lets it move in.

    Args:
        told: whether the log has been told before; it is told once.

    Returns:
        whether it has been told now or before: the error is, or was, above a tenth of the range.

    Raises:
        UserError: it is above the range itself.
    """
    if noise <= clip_range / 10:
        return told
    fact = f"log-ratios are known to {noise:.2g} (evidence_noise) and clipped at objective.clip_range={clip_range:g}"
    if not noise <= clip_range:
        raise UserError(
            f"update {update}: {fact}: the clip would act on rounding. The network computes in {precision} "
            "(learner.autocast, model.dtype), and its evidence as learner.evidence_precision says. Set a larger "
            "objective.clip_range, or updates_per_epoch=1 and cluster.max_staleness=0, where no clip acts, and start "
            "anew in another output_dir"
        )
    if not told:
        log.warning("update %d: %s: some of what is clipped is rounding", update, fact)
    return True
