"""Signs that a policy exploits its reward, or is past its best, in the held-out evaluations of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prdp.tracking.evaluations import Evaluation, common_images
from prdp.tracking.statistics import paired_difference_interval
from prdp.types import Float64

WATCHED = "watch/"
_CONFIDENCE = 0.95
"""Of all comparisons of an evaluation together, each of which has its share of the rest (Bonferroni)."""
_SHIFT = 1.0
"""Standard deviations, over the images of the start, by which a statistic of the pictures may move."""
_DIVERSITY = 0.5
"""Share of the start's diversity that may be lost."""


@dataclass(frozen=True)
class Alarm:
    """Something that somebody should look at.

    Attributes:
        epoch: of the first evaluation that shows it, as all later ones do.
        subject: what it is about; one alarm has one.
        text: a sentence that names the epoch.
    """

    epoch: int
    subject: str
    text: str


def alarms(evaluations: Sequence[Evaluation]) -> list[Alarm]:
    """What the last evaluation shows beside the first one, over the same prompts and noise.

    A sub-score or watched term falls while the score rises; a statistic of the pictures moves by more than a standard
    deviation of the start's images; half of the diversity is lost; the score lies below its best evaluation. Each by an
    interval that leaves out zero, with Bonferroni's correction over what is compared.

    Args:
        evaluations: of one run, by ascending epoch.

    Returns:
        By ascending epoch; none with fewer than two evaluations, or without common images.
    """
    if len(evaluations) < 2:
        return []
    shown: dict[str, Alarm] = {}
    for current in evaluations[1:]:
        found = _beside_start(evaluations[0], current)
        shown = {
            subject: Alarm(epoch, subject, text.format(epoch=epoch))
            for subject, text in found.items()
            for epoch in [shown[subject].epoch if subject in shown else current.epoch]
        }
    fallen = _past_best(evaluations)
    return sorted([*shown.values(), *fallen], key=lambda alarm: alarm.epoch)


def _beside_start(first: Evaluation, current: Evaluation) -> dict[str, str]:
    """Subject -> a sentence with {epoch} in it."""
    i, j = common_images(first, current)
    if not len(i):
        return {}
    groups = first.prompt_index[i]
    parts, pictures = (
        {name: (old[name][i], new[name][j]) for name in old if name in new}
        for old, new in ((first.sub_scores, current.sub_scores), (first.pictures, current.pictures))
    )
    confidence = 1 - (1 - _CONFIDENCE) / max(1, len(parts) + len(pictures))

    def difference(before: Float64, after: Float64) -> tuple[float, float, float]:
        return paired_difference_interval(before, after, groups, confidence)

    found = {}
    _, low, _ = difference(first.scores[i], current.scores[j])
    if low > 0:
        for name, (before, after) in parts.items():
            mean, _, high = difference(before, after)
            if high < 0:
                found[name] = f"{_called(name)} falls since epoch {{epoch}}, by {-mean:.3g}, while the score rises"
    for name, (before, after) in pictures.items():
        mean, low, high = difference(before, after)
        if name == "diversity":
            start = float(np.nanmean(before))
            if high < 0 and mean < -_DIVERSITY * start:
                found[name] = (
                    f"the images of a prompt are alike since epoch {{epoch}}: their diversity is {start + mean:.3g}, "
                    f"of {start:.3g} at the start"
                )
            continue
        spread = float(np.nanstd(before))
        if (low > 0 or high < 0) and abs(mean) > _SHIFT * spread:
            found[name] = (
                f"{name} of the pictures has moved since epoch {{epoch}}: by {mean:+.3g}, where images of the start "
                f"differ by {spread:.3g}"
            )
    return found


def _called(name: str) -> str:
    kind = "the watched term" if name.startswith(WATCHED) else "the sub-score"
    return f"{kind} {name.removeprefix(WATCHED)}"


def _past_best(evaluations: Sequence[Evaluation]) -> list[Alarm]:
    """The score has fallen below that of an earlier evaluation."""
    last = evaluations[-1]
    confidence = 1 - (1 - _CONFIDENCE) / (len(evaluations) - 1)
    best: tuple[float, int] | None = None
    for one in evaluations[:-1]:
        i, j = common_images(one, last)
        if len(i):
            mean, _, high = paired_difference_interval(one.scores[i], last.scores[j], one.prompt_index[i], confidence)
            if high < 0 and (best is None or mean < best[0]):
                best = mean, one.epoch
    if best is None:
        return []
    fall, epoch = best
    return [Alarm(epoch, "score", f"the held-out score falls since epoch {epoch}, by {-fall:.3g}")]
