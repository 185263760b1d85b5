"""The chart of all rewards beside each other: a line per model and reward, a dot with its interval on each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape

import numpy as np

from prdp.evaluation.results import Results
from prdp.reports.charts import short_number, ticks
from prdp.reports.report_text import interval, signed

_LEFT, _RIGHT, _TOP, _LINE, _GAP, _WIDTH = 160, 20, 8, 22, 8, 520
_MODEL, _REWARD = 64, 22
"""Most characters of a name that are shown; the tooltip has all."""


@dataclass(frozen=True)
class _Dot:
    model: str
    reward: str
    value: float
    low: float
    high: float
    trained: bool


def dots_svg(results: Results, prompt_set: str) -> str:
    """The chart of one prompt set; empty when nothing can be drawn."""
    dots = _dots(results, prompt_set)
    if not dots:
        return ""
    ends = [v for dot in dots for v in (dot.value, dot.low, dot.high) if math.isfinite(v)] + [0.0]
    low, high = min(ends), max(ends)
    pad = 0.06 * (high - low) or 1.0
    low, high = low - pad, high + pad

    def x(value: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (value - low) / (high - low)

    rewards = list(results.rewards)
    parts: list[str] = []
    y = float(_TOP)
    model = ""
    for dot in dots:
        if dot.model != model:
            y += _GAP if model else 0
            model = dot.model
            name = escape(_cut(model, _MODEL))
            parts.append(f'<text x="0" y="{y + 15:.0f}" font-weight="600">{name}<title>{escape(model)}</title></text>')
            y += _LINE
        middle, color = y + _LINE / 2, rewards.index(dot.reward) % 4
        name = escape(_cut(dot.reward, _REWARD))
        tip = f"{dot.model}, {dot.reward}: {signed(dot.value)} {interval((dot.value, dot.low, dot.high), signed)}"
        parts.append(f"<g><title>{escape(tip)}</title>")
        parts.append(f'<text class="axis" x="{_LEFT - 12}" y="{middle + 4:.0f}" text-anchor="end">{name}</text>')
        if math.isfinite(dot.low) and math.isfinite(dot.high):
            span = f'x1="{x(dot.low):.1f}" x2="{x(dot.high):.1f}" y1="{middle:.1f}" y2="{middle:.1f}"'
            parts.append(f'<line class="whisker s{color}" {span}/>')
        kind = f"p{color}" if dot.trained else f"hollow s{color}"
        parts.append(f'<circle class="{kind}" cx="{x(dot.value):.1f}" cy="{middle:.1f}" r="5"/></g>')
        y += _LINE
    foot = y + 6
    axis = [
        f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{_TOP}" y2="{foot:.0f}"/>'
        f'<text class="axis" x="{x(tick):.1f}" y="{foot + 15:.0f}" text-anchor="middle">{short_number(tick)}</text>'
        for tick in ticks(low, high, 5)
    ]
    zero = f'<line class="zero" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="{_TOP}" y2="{foot:.0f}"/>'
    return (
        f'<svg class="chart dots" viewBox="0 0 {_WIDTH} {foot + 22:.0f}" role="img" '
        f'aria-label="differences of all rewards on {escape(prompt_set, quote=True)}">{"".join(axis)}{zero}'
        f"{''.join(parts)}</svg>"
    )


def _dots(results: Results, prompt_set: str) -> list[_Dot]:
    assert results.against is not None
    base = results.images[results.against, prompt_set]
    found = []
    for model in results.models:
        for reward in results.rewards:
            cell = results.cell(model.name, prompt_set, reward)
            unit = float(np.std(base.scores[reward]))
            if model.name != results.against and cell is not None and unit > 0:
                value, low, high = (part / unit for part in cell.difference)
                found.append(_Dot(model.name, reward, value, low, high, results.trained_on(model, reward)))
    return found


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "\N{HORIZONTAL ELLIPSIS}"
