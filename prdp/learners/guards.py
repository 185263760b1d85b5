"""Checks that stop or name what would otherwise fail in silence."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import numpy as np

from prdp.evidence import Evidence
from prdp.types import Float64, Rollout

log = logging.getLogger(__name__)


_ROUNDING = 1e-8
"""Of the largest entry of a gradient, a tenth of float32's rounding: what a tensor's entries are all below is noise."""


class RatioError(RuntimeError):
    """On an on-policy rollout the recomputed evidence is not the stored one."""


def check_columns(rollout: Rollout, evidence: Evidence, expected: int) -> None:
    """Compare a rollout's evidence with the columns that the size of the run was planned with.

    Args:
        expected: what `Evidence.columns` says of the run's sampler.

    Raises:
        ValueError: the rollout does not hold what the evidence is computed from, or its columns are others.
    """
    evidence.check(rollout)
    _, columns = evidence.shape(rollout)
    if columns != expected:
        kind = type(evidence).__name__
        raise ValueError(f"{kind}.shape says {columns} columns and {kind}.columns {expected}; they must be the same")


def check_rollout(
    rollout: Rollout, evidence: Evidence, compares_images: bool, guard: str | None = None, takes_rewards: bool = True
) -> dict[str, float]:
    """Counts of what makes a batch teach less than it seems to.

    Args:
        evidence: what the rollout has to hold something for.
        compares_images: whether images of the same prompt are compared with each other.
        guard: the channel that is to be compared with what the rollout stores of it.
        takes_rewards: whether rewards are learned from; without, the rollout needs none.

    Returns:
        {"rewards_constant": 1.0 when all rewards of the batch are equal, else 0.0}; empty where none are learned from.

    Raises:
        ValueError: no rewards, nothing stored or no conditions, groups too small to make a pair, or a guard that
            nothing is stored of.
    """
    if rollout.rewards is None and takes_rewards:
        raise ValueError("the rollout has no rewards: score it before learning from it")
    evidence.check(rollout)
    images, columns = evidence.shape(rollout)
    if images != len(rollout) or columns < 1:
        raise ValueError(
            f"{type(evidence).__name__}.shape says {images} images and {columns} columns of a rollout of "
            f"{len(rollout)} images; it must be all of them, and at least one column"
        )
    if guard is not None and guard not in (stored := evidence.stored(rollout)):
        kind = type(evidence).__name__
        raise ValueError(
            f"{kind}.guard names '{guard}', which {kind}.stored does not give of the rollout; it gives "
            f"{', '.join(stored) or 'nothing'}"
        )
    if not rollout.conditions:
        raise ValueError("the rollout has no conditions of its prompts: sample it with trajectory=True")
    if compares_images and rollout.images_per_prompt < 2:
        raise ValueError(f"images_per_prompt is {rollout.images_per_prompt}: a group of one image makes no pair")
    if not takes_rewards or rollout.rewards is None:
        return {}
    if not np.isfinite(rollout.rewards).all():
        raise ValueError(f"{(~np.isfinite(rollout.rewards)).sum()} of {len(rollout)} rewards are not finite")
    constant = bool(np.ptp(rollout.rewards) == 0)
    if constant:
        log.warning(
            "all %d rewards of epoch %d are %g: nothing to learn from", len(rollout), rollout.prompts.epoch,
            rollout.rewards[0],
        )
    return {"rewards_constant": float(constant)}


def check_ratio(
    stored: Float64, recomputed: Float64, tolerance: float, update: int, place: Callable[[int, int], str]
) -> None:
    """Compare the evidence [n, T] of an on-policy rollout with what the sampler stored.

    Args:
        place: where the cell of an image and a column lies, for the message.

    Raises:
        RatioError: by how much they differ, and where.
    """
    error = np.abs(stored - recomputed)
    worst = float(error.max())
    if not worst <= tolerance:
        image, column = (int(part) for part in np.unravel_index(int(error.argmax()), error.shape))
        raise RatioError(
            f"at update {update} the evidence of an on-policy rollout differs by {worst:.3g} from the stored one "
            f"(learner.ratio_tolerance={tolerance:g}), worst at {place(image, column)}: "
            f"stored {stored[image, column]:.6g}, recomputed {recomputed[image, column]:.6g}. Sampler and learner do "
            "not compute the same policy: weights, precision or guidance differ"
        )


def unlearned(largest: Mapping[str, float | None], first: bool) -> list[str]:
    """Names of learning tensors that got no gradient, or one of rounding alone; tells the log of them.

    What is zero in exact arithmetic, such as the gradient of queries and keys where a picture is down to one position,
    is zero in one framework and rounding in another.

    At the `first` update a zero gradient is no fault: LoRA starts with one factor at zero, which hides the other.

    Args:
        largest: largest absolute entry of each tensor's gradient; None where there is no gradient.
        first: whether this is the first update.
    """
    finite = [value for value in largest.values() if value is not None and np.isfinite(value)]
    floor = _ROUNDING * max(finite, default=0.0)
    without = [name for name, value in largest.items() if value is None or not (first or value > floor)]
    if without:
        log.warning("%d of %d tensors got no gradient, first: %s", len(without), len(largest), without[0])
    return without


def gradient_error(update: int, largest: Mapping[str, float]) -> ValueError:
    """What to raise when the norm of a gradient is not finite, which it may be though every entry is.

    Args:
        largest: largest absolute entry of each tensor's gradient.
    """
    bad = next((name for name, value in largest.items() if not np.isfinite(value)), None)
    if bad is not None:
        return ValueError(f"the gradient of update {update} is not finite, first in tensor '{bad}'")
    name = max(largest, key=lambda name: largest[name])
    return ValueError(
        f"the norm of the gradient of update {update} is beyond float32: entries up to {largest[name]:.3g}, in tensor "
        f"'{name}'; the policy has diverged"
    )
