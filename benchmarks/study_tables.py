"""Tables of studies: numbers with intervals over seeds, as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""0.975 quantiles of Student's t with 1 to 9 degrees of freedom."""


def interval(values: Sequence[float], digits: int = 3) -> str:
    """Mean and 95% Student interval over seeds; a single value alone."""
    good = [value for value in values if math.isfinite(value)]
    if not good:
        return ""
    mean = float(np.mean(good))
    if len(good) == 1:
        return number(mean, digits)
    half = _STUDENT[len(good) - 2] * float(np.std(good, ddof=1)) / math.sqrt(len(good))
    return f"{number(mean, digits)} ± {number(half, digits)}"


def number(value: float, digits: int) -> str:
    """With so many digits after the point, or as a power of ten from a million on."""
    return f"{value:.{digits}f}" if abs(value) < 1e6 else f"{value:.1e}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Markdown; the first row is the head."""
    head, *body = rows
    lines = ["| " + " | ".join(row) + " |" for row in (head, *body)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])
