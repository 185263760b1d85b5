"""Thresholds that choose a wanted share of scores, bound to what these scores were measured on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from prdp.support.errors import StartError
from prdp.support.json_lines import load_json
from prdp.support.storage import write_atomically

Side = Literal["below", "above"]
PARTS = ("model", "scorer", "sampler", "prompts")
"""What a threshold holds for: scores of another model, by another scorer, of images that were sampled otherwise or of
other prompts have other quantiles."""
FORMAT = 1


@dataclass(frozen=True)
class Threshold:
    """A threshold of scores, and what it chose of those that it was fitted to.

    Attributes:
        value: in the unit of the scores; -inf or inf where none or all are to be chosen.
        side: scores strictly below it are chosen, or those strictly above.
        rate: the share that was asked for.
        realised: the share that it chose.
        count: scores that it was fitted to.
        ties: of them, those equal to `value`, which are not chosen.
    """

    value: float
    side: Side
    rate: float
    realised: float
    count: int
    ties: int

    def chooses(self, scores: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Which scores it chooses, bool of their shape; NaN never is."""
        values = np.asarray(scores, np.float64)
        return values < self.value if self.side == "below" else values > self.value

    def __str__(self) -> str:
        tied = f", {self.ties} of them equal to it" if self.ties > 1 else ""
        return (
            f"{self.side} {self.value:.6g}: {self.realised:.1%} of {self.count} scores, {self.rate:.1%} were asked "
            f"for{tied}"
        )


def fit(scores: npt.ArrayLike, rate: float, side: Side) -> Threshold:
    """The threshold that chooses the share `rate` of the lowest or highest scores, and never more.

    It is an order statistic: with k = floor(rate n), the score next to the k that are chosen. Without ties k are.
    Scores that tie with it are all left out, since nothing tells them apart. A rate of 0 chooses none of any scores,
    and 1 all.

    Args:
        scores: [n], finite.
        rate: from 0 to 1.
        side: whether low or high scores are to be chosen.

    Raises:
        ValueError: no scores, scores that are not finite, or a rate or side that there is not.

    References:
        The quantile of a sample of n has a standard deviation of about sqrt(rate (1 - rate) / n), so on other scores
        the rate differs by as much: .04 with 100 scores at a rate of .2, .013 with 1,000.
    """
    values = np.asarray(scores, np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"scores have the shape {values.shape}, expected [n] with n of at least 1")
    if not np.isfinite(values).all():
        raise ValueError(f"{(~np.isfinite(values)).sum()} of {len(values)} scores are not finite")
    if not 0 <= rate <= 1:
        raise ValueError(f"rate={rate}: must be from 0 to 1")
    if side not in get_args(Side):
        raise ValueError(f"side={side}: must be {' or '.join(get_args(Side))}")
    sign = 1.0 if side == "below" else -1.0
    # A rate such as .29 of 100 is 28.999... in floating point.
    wanted = math.floor(rate * len(values) + 1e-9)
    if rate in (0, 1):
        value = -math.inf if rate == 0 else math.inf
    else:
        value = float(np.sort(sign * values)[min(wanted, len(values) - 1)])
    chosen = int((sign * values < value).sum())
    return Threshold(
        value=sign * value,
        side=side,
        rate=float(rate),
        realised=chosen / len(values),
        count=len(values),
        ties=int((sign * values == value).sum()),
    )


def save(path: Path, threshold: Threshold, digests: Mapping[str, str]) -> None:
    """Write a threshold as JSON.

    Args:
        digests: texts that change with what it was fitted on, by the names of `PARTS`.

    Raises:
        ValueError: digests of other parts.
        StorageError: the file cannot be written; what it held before stays.
    """
    _check_parts(digests)
    # JSON knows no infinity.
    content = {"format": FORMAT, **asdict(threshold), "value": repr(threshold.value), "digests": dict(digests)}
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def load(path: Path, digests: Mapping[str, str]) -> Threshold:
    """Read a threshold for use with what these digests are of.

    Args:
        digests: as for `save`.

    Raises:
        ValueError: digests of other parts.
        StartError: a file that is no threshold, or one that was fitted on something else; names what differs.
    """
    _check_parts(digests)
    try:
        content = load_json(path.read_bytes())
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, expected {FORMAT}")
        known = {part: str(content["digests"][part]) for part in PARTS}
        threshold = Threshold(
            value=float(content["value"]),
            side=content["side"],
            rate=float(content["rate"]),
            realised=float(content["realised"]),
            count=int(content["count"]),
            ties=int(content["ties"]),
        )
        if threshold.side not in get_args(Side) or math.isnan(threshold.value):
            raise ValueError(f"side {threshold.side}, value {threshold.value}")
    except FileNotFoundError:
        raise StartError(f"{path}: there is no such file; a threshold has to be calibrated first") from None
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise StartError(f"{path}: is no threshold: {type(error).__name__}: {error}") from None
    other = [f"{part} ({known[part]} then, {digests[part]} now)" for part in PARTS if known[part] != digests[part]]
    if other:
        raise StartError(
            f"{path}: the threshold was calibrated with another {', another '.join(other)}; calibrate anew"
        )
    return threshold


def _check_parts(digests: Mapping[str, str]) -> None:
    if set(digests) != set(PARTS):
        raise ValueError(f"digests are of {', '.join(digests) or 'nothing'}, expected {', '.join(PARTS)}")
