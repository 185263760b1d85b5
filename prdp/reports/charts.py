"""Line charts as plain SVG: no library, no script; colours from CSS variables so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

import numpy as np

_LIMIT = 240

LIGHT = ("#2563a8", "#c2621b", "#2e8b6f", "#8a4fae", "#b3294e", "#7a6a00", "#0e7f92", "#5c5c5c", "#9c4a1f", "#1c2430")
DARK = ("#6ea8e6", "#e8995c", "#5fc3a4", "#bd8fdc", "#f07f9e", "#cdbb46", "#5bc4d6", "#b0b0b0", "#d9a37c", "#e6eaf0")
"""Colours of the curves, in order."""
CURVE_COLOURS = ":root{{{}}}@media (prefers-color-scheme:dark){{:root{{{}}}}}\n".format(
    *(";".join(f"--s{n}:{colour}" for n, colour in enumerate(colours)) for colours in (LIGHT, DARK))
)
"""The same as CSS variables, --s0 and so on."""
STANDALONE_STYLE = (
    CURVE_COLOURS
    + """
svg{--ink:#1c2430;--muted:#5d6878;--line:#e3e7ec;--paper:#fff;
font-family:system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
@media (prefers-color-scheme:dark){svg{--ink:#e6eaf0;--muted:#9aa5b5;--line:#2b3442;--paper:#141a22}}
.paper{fill:var(--paper)}
"""
)
CHART_STYLE = """
.chart .grid{stroke:var(--line);stroke-width:1}
.chart text{fill:var(--muted);font-size:11px}
.chart .name{fill:var(--ink);font-size:13px;font-weight:600}
.chart .curve{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.chart .band{opacity:.16;stroke:none}
.chart .hit{fill:transparent}
.chart .dot{opacity:0;stroke:var(--paper);stroke-width:1.5}
.chart .dot.kept,.chart g:hover>.dot{opacity:1}
.chart .rule{stroke:var(--muted);stroke-width:1;opacity:0}
.chart g:hover>.rule{opacity:.5}
""" + "".join(f".chart .c{n}{{stroke:var(--s{n})}}.chart .f{n}{{fill:var(--s{n})}}" for n in range(len(LIGHT)))
_BESIDE_TITLE, _IN_A_ROW = 4, 3
"""Most curves that the legend names beside the title, where they fit; and in a row under it."""
_LEFT, _RIGHT, _ROW = 58, 14, 18
_KEY = 28
"""What a legend takes beside its names: a square, and the room around it."""


@dataclass(frozen=True)
class Series:
    """One curve: x and y of equal length, and optionally a band from low to high. NaN leaves a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


def curve_svg(
    series: Sequence[Series],
    title: str = "",
    x_label: str = "epoch",
    width: int = 640,
    height: int = 260,
    standalone: bool = False,
    legend: bool = True,
    points: int = _LIMIT,
    name: str = "",
) -> str:
    """Draw up to ten curves on common axes; hovering names the values.

    Args:
        series: the curves; those without a finite point are left out.
        title: inside the picture, top left; also its accessible name.
        x_label: under the x-axis.
        width, height: of the coordinate system; the picture scales to its container.
        standalone: a file of its own with its colours, for a documentation page, instead of a part of the report.
        legend: whether several curves are named in the picture.
        points: drawn per series; longer ones are averaged in equal runs of epochs.
        name: for those who do not see the picture; the title, or else the names of the curves, when left out.

    Raises:
        ValueError: no curves, more than ten, or x and y of different lengths.
    """
    if not 1 <= len(series) <= len(LIGHT):
        raise ValueError(f"a chart takes 1 to {len(LIGHT)} series, got {len(series)}")
    drawn = [(index, _clean(item, points)) for index, item in enumerate(series)]
    drawn = [(index, arrays) for index, arrays in drawn if arrays.shape[1]]
    left, bottom, across = _LEFT, 36 if x_label else 22, width - _LEFT - _RIGHT
    widest = max(text_width(item.name) for item in series) + _KEY
    beside = sum(text_width(item.name) + _KEY for item in series) + (text_width(title, 13) if title.strip() else 0)
    columns = max(1, min(_IN_A_ROW, int(across / widest)))
    legend = legend and len(series) > 1
    below = legend and (len(series) > _BESIDE_TITLE or beside > across)
    rows = math.ceil(len(series) / columns) if below else 0
    # The curves keep their height where long names take more rows.
    height += _ROW * max(0, rows - math.ceil(len(series) / _IN_A_ROW))
    top = (34 if title or legend else 12) + _ROW * rows
    frame = _Frame(drawn, left, top, across, height - top - bottom)

    parts = [_axes(frame, x_label, height)]
    if not drawn:
        middle = f'x="{left + frame.width / 2:.0f}" y="{top + frame.height / 2:.0f}"'
        parts.append(f'<text {middle} text-anchor="middle">no values</text>')
    for index, arrays in drawn:
        parts.append(_curve(frame, index, arrays))
    parts.append(_hover(frame, series, drawn, x_label or "x"))
    if title:
        parts.append(f'<text class="name" x="{left}" y="18">{escape(title)}</text>')
    if rows:
        parts.append(_legend_below(series, left, across / columns, columns))
    elif legend:
        parts.append(_legend(series, width - _RIGHT))
    name = escape(name or title or ", ".join(item.name for item in series), quote=True)
    head = f'class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{name}"'
    if not standalone:
        return f"<svg {head}>{''.join(parts)}</svg>"
    paper = f'<rect class="paper" width="{width}" height="{height}" rx="8"/>'
    size = f'xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
    return f"<svg {size} {head}><style>{STANDALONE_STYLE}{CHART_STYLE}</style>{paper}{''.join(parts)}</svg>\n"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers at equal distances inside [low, high], about `count` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    scale = 10.0 ** math.floor(math.log10(raw))
    step = min((scale * factor for factor in (1, 2, 2.5, 5, 10)), key=lambda step: abs(math.log(step / raw)))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) if step > 1e-9 else i * step for i in range(first, last + 1)]


def short_number(value: float) -> str:
    """A number as an axis or a tooltip shows it: about four digits, scientific where plain would be long."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    if 1e-3 <= abs(value) < 1e6:
        plain = f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
        return plain.replace("-", "\N{MINUS SIGN}")
    mantissa, exponent = f"{value:.2e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return f"{mantissa}e{int(exponent)}".replace("-", "\N{MINUS SIGN}")


def text_width(text: str, size: float = 11) -> float:
    """About how wide a text is, in the units of its font size; the fonts of readers differ."""
    return size * (0.56 * len(text) + 0.18 * sum(map(str.isupper, text)))


class _Frame:
    """Maps data to picture coordinates."""

    def __init__(
        self, drawn: Sequence[tuple[int, np.ndarray]], left: float, top: float, width: float, height: float
    ) -> None:
        self.left, self.top, self.width, self.height = left, top, width, height
        if not drawn:
            self.x0, self.x1, self.y0, self.y1 = 0.0, 1.0, 0.0, 1.0
            return
        xs = np.concatenate([arrays[0] for _, arrays in drawn])
        ys = np.concatenate([arrays[1:].ravel() for _, arrays in drawn])
        ys = ys[np.isfinite(ys)]
        self.x0, self.x1 = float(xs.min()), float(xs.max())
        low, high = float(ys.min()), float(ys.max())
        spread = high - low
        # A flat curve in the middle of its chart, and never so close a look that rounding becomes a landscape.
        pad = 0.08 * spread if spread > 1e-9 * max(abs(low), abs(high)) else 0.1 * abs(high) or 1.0
        self.y0 = 0.0 if 0 <= low < 0.35 * spread else low - pad
        self.y1 = high + pad

    def x(self, value: float) -> float:
        span = self.x1 - self.x0
        return self.left + self.width * ((value - self.x0) / span if span else 0.5)

    def y(self, value: float) -> float:
        return self.top + self.height * (1 - (value - self.y0) / (self.y1 - self.y0))


def _clean(series: Series, points: int) -> np.ndarray:
    """Finite points as float64 [4, m]: x, y, low, high (NaN without a band), at most so many of them."""
    columns = [series.x, series.y, *(series.y if edge is None else edge for edge in (series.low, series.high))]
    if len({len(column) for column in columns}) != 1:
        raise ValueError(f"series '{series.name}' has columns of {[len(column) for column in columns]} points")
    arrays = np.array([np.asarray(column, dtype=np.float64) for column in columns])
    if series.low is None or series.high is None:
        arrays[2:] = np.nan
    arrays = arrays[:, np.isfinite(arrays[0]) & np.isfinite(arrays[1])]
    arrays[2:][~np.isfinite(arrays[2:])] = np.nan
    if arrays.shape[1] > points:
        edges = np.linspace(0, arrays.shape[1], points + 1).astype(int)
        arrays = np.stack([arrays[:, a:b].mean(axis=1) for a, b in pairwise(edges)], axis=1)
    return arrays


def _axes(frame: _Frame, x_label: str, height: int) -> str:
    parts = []
    for value in ticks(frame.y0, frame.y1):
        y = frame.y(value)
        parts.append(
            f'<line class="grid" x1="{frame.left}" x2="{frame.left + frame.width}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(f'<text x="{frame.left - 8}" y="{y + 4:.1f}" text-anchor="end">{short_number(value)}</text>')
    foot = frame.top + frame.height
    widest = max(text_width(short_number(value)) for value in (frame.x0, frame.x1))
    for value in ticks(frame.x0, frame.x1, max(1, min(6, int(frame.width / (widest + 16))))):
        if frame.x1 - frame.x0 < 1 or value == round(value):
            text = short_number(value)
            # A label at the right edge would be cut off where it is wider than the margin.
            x = min(frame.x(value), frame.left + frame.width + _RIGHT - text_width(text) / 2)
            parts.append(f'<text x="{x:.1f}" y="{foot + 15:.1f}" text-anchor="middle">{text}</text>')
    if x_label:
        middle = frame.left + frame.width / 2
        parts.append(f'<text x="{middle:.0f}" y="{height - 6}" text-anchor="middle">{escape(x_label)}</text>')
    return "".join(parts)


def _curve(frame: _Frame, index: int, arrays: np.ndarray) -> str:
    x, y, low, high = arrays
    points = [f"{frame.x(a):.1f},{frame.y(b):.1f}" for a, b in zip(x, y, strict=True)]
    parts = []
    band = np.isfinite(low) & np.isfinite(high)
    if band.sum() > 1:
        upper = [f"{frame.x(a):.1f},{frame.y(b):.1f}" for a, b in zip(x[band], high[band], strict=True)]
        lower = [f"{frame.x(a):.1f},{frame.y(b):.1f}" for a, b in zip(x[band], low[band], strict=True)]
        parts.append(f'<polygon class="band f{index}" points="{" ".join(upper + lower[::-1])}"/>')
    elif band.any():
        a = f"{frame.x(x[band][0]):.1f}"
        ends = f'y1="{frame.y(low[band][0]):.1f}" y2="{frame.y(high[band][0]):.1f}"'
        parts.append(f'<line class="curve c{index}" x1="{a}" x2="{a}" {ends}/>')
    if len(points) > 1:
        parts.append(f'<polyline class="curve c{index}" points="{" ".join(points)}"/>')
    return "".join(parts)


def _hover(frame: _Frame, series: Sequence[Series], drawn: Sequence[tuple[int, np.ndarray]], x_label: str) -> str:
    """One full-height strip per x that holds all its values as a tooltip, so that no one has to hit a dot."""
    values: dict[float, list[tuple[int, float, float, float]]] = {}
    for index, arrays in drawn:
        for x, y, low, high in arrays.T:
            values.setdefault(float(x), []).append((index, float(y), float(low), float(high)))
    xs = sorted(values)
    kept = " kept" if max((arrays.shape[1] for _, arrays in drawn), default=0) <= 30 else ""
    parts = []
    for i, x in enumerate(xs):
        start = frame.x((xs[i - 1] + x) / 2) if i else frame.left
        end = frame.x((x + xs[i + 1]) / 2) if i + 1 < len(xs) else frame.left + frame.width
        text = [f"{x_label} {short_number(x)}"]
        dots = []
        for index, y, low, high in values[x]:
            interval = "" if math.isnan(low) or math.isnan(high) else f" [{short_number(low)}, {short_number(high)}]"
            text.append(f"{series[index].name} {short_number(y)}{interval}")
            dots.append(f'<circle class="dot{kept} f{index}" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3.5"/>')
        rule = f'x1="{frame.x(x):.1f}" x2="{frame.x(x):.1f}" y1="{frame.top}" y2="{frame.top + frame.height}"'
        strip = f'x="{start:.1f}" y="{frame.top}" width="{max(end - start, 1):.1f}" height="{frame.height}"'
        parts.append(
            f'<g><title>{escape(chr(10).join(text))}</title><line class="rule" {rule}/>{"".join(dots)}'
            f'<rect class="hit" {strip}/></g>'
        )
    return "".join(parts)


def _legend(series: Sequence[Series], right: float) -> str:
    parts: list[str] = []
    for index in reversed(range(len(series))):
        name = series[index].name
        parts.append(f'<text x="{right:.0f}" y="18" text-anchor="end">{escape(name)}</text>')
        right -= text_width(name) + 14
        parts.append(f'<rect class="f{index}" x="{right:.0f}" y="9" width="10" height="10" rx="2"/>')
        right -= 14
    return "".join(parts)


def _legend_below(series: Sequence[Series], left: float, width: float, columns: int) -> str:
    """In rows under the title."""
    parts = []
    for index, item in enumerate(series):
        row, column = divmod(index, columns)
        x, y = left + column * width, 36 + _ROW * row
        parts.append(f'<rect class="f{index}" x="{x:.0f}" y="{y - 9}" width="10" height="10" rx="2"/>')
        parts.append(f'<text x="{x + 14:.0f}" y="{y}">{escape(item.name)}</text>')
    return "".join(parts)
