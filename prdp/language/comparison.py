"""A pair beside what it has to beat: each model alone, and other ways to choose as many tokens for the assistant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from prdp.language.calibrating import Metric, rate_of
from prdp.language.choosing import SCORES, Above, AtRandom, Constant
from prdp.language.decoding import Answer, Pair, RuleFor


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        name: who writes.
        metric: mean over texts, with half the width of its 95 % interval.
        rate: share of tokens that the assistant wrote.
        calls: of the assistant, per text.
    """

    name: str
    metric: float
    interval: float
    rate: float
    calls: float

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def row(name: str, answers: Sequence[Answer], wanted: Sequence[str], metric: Metric) -> Row:
    """The line of answers."""
    quality = np.asarray(metric([one.text for one in answers], wanted), np.float64)
    spread = quality.std(ddof=1) / np.sqrt(len(quality)) if len(quality) > 1 else np.nan
    calls = float(np.mean([one.calls for one in answers]))
    return Row(name, float(quality.mean()), float(1.96 * spread), rate_of(answers), calls)


def baselines(
    pairs: Mapping[str, Pair], base: Pair, rate: float, thresholds: Mapping[str, float], seed: int = 0
) -> list[tuple[str, Pair, RuleFor]]:
    """What a pair is compared with: name, who writes, and by which rule.

    Args:
        pairs: variant of the folder -> the pair with its model; `trained` is there.
        base: with the base as it came.
        rate: share of tokens that the pair left to the assistant.
        thresholds: at that rate: 'entropy' of the fine-tuned base, or of the trained one where there is none, and the
            deferral of each other variant by its name.
        seed: of random deferral.
    """
    has_one = "fine_tuned" in pairs
    alone, named = (pairs["fine_tuned"], "fine-tuned base") if has_one else (pairs["trained"], "trained base")

    def at_random(rows: Sequence[int]) -> AtRandom:
        return AtRandom(rate, [(seed, 5, number) for number in rows])

    def above(score: str, name: str) -> RuleFor:
        return lambda _: Above(SCORES[score], thresholds[name])

    never, always = Constant(False), Constant(True)
    found: list[tuple[str, Pair, RuleFor]] = [
        ("base alone", base, lambda _: never),
        ("assistant alone", base, lambda _: always),
        ("trained base, never deferring", pairs["trained"], lambda _: never),
        ("trained base, at random", pairs["trained"], at_random),
        (f"{named}, by entropy", alone, above("entropy", "entropy")),
    ]
    if has_one:
        found.append(("fine-tuned base alone", alone, lambda _: never))
        found.append(("fine-tuned base, at random", alone, at_random))
        found.append(("fine-tuned base, weak labels", alone, above("deferral", "fine_tuned")))
    if "init" in pairs:
        found.append(("base, weak labels", pairs["init"], above("deferral", "init")))
    return found


def table(rows: Sequence[Row], metric: str) -> str:
    """Lines for people."""
    width = max(len(one.name) for one in rows)
    lines = [f"{'':<{width}}  {metric:>8}  {'± 95%':>6}  {'deferred':>8}  {'calls':>6}"]
    lines += [
        f"{one.name:<{width}}  {one.metric:>8.3f}  {one.interval:>6.3f}  {one.rate:>8.3f}  {one.calls:>6.1f}"
        for one in rows
    ]
    return "\n".join(lines)
