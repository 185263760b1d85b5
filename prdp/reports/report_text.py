"""Numbers as the report prints them."""

from __future__ import annotations

import math
from collections.abc import Callable

MINUS = "\N{MINUS SIGN}"


def score(value: float) -> str:
    """A score with three decimals, four digits when it is large; an n-dash for NaN."""
    if math.isnan(value):
        return "\N{EN DASH}"
    text = f"{value:z.3f}" if abs(value) < 100 else f"{value:.4g}"
    return text.replace("-", MINUS)


def signed(value: float) -> str:
    """As `score`, with its sign; without one where it is shown as zero."""
    return f"+{score(value)}" if value > 0 and not shown_as_zero(value) else score(value)


def shown_as_zero(value: float) -> bool:
    return score(value) == score(0.0)


def tone(sign: int, difference: float) -> str:
    """The style of a difference: 'up', 'down', or '' for one that is shown as zero or may be chance.

    Args:
        sign: +1 or -1 where the difference's interval leaves out zero, else 0.
        difference: its mean.
    """
    return "" if shown_as_zero(difference) else {1: "up", -1: "down", 0: ""}[sign]


def interval(value: tuple[float, float, float], style: Callable[[float], str] = score) -> str:
    """The brackets of (mean, low, high); empty when there are none."""
    _, low, high = value
    return "" if math.isnan(low) or math.isnan(high) else f"[{style(low)}, {style(high)}]"


def label(name: str) -> str:
    """A metric or sub-score name for people; terms of a weighted sum that are only watched say so."""
    watched = name.removeprefix("watch/")
    text = watched.replace("_", " ")
    return text if watched == name else f"{text} (watched, not optimised)"
