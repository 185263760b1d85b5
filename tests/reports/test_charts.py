"""Charts: well-formed, inside their frame, with their values to read."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import numpy as np
import pytest

from prdp.reports.charts import Series, curve_svg, short_number, text_width, ticks


def points_of(svg: str) -> list[tuple[float, float]]:
    found = re.search(r'<polyline class="curve c0" points="([^"]*)"', svg)
    assert found is not None
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in found[1].split())]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.61, 0.74, [0.625, 0.65, 0.675, 0.7, 0.725]),
        (-3.0, 22.0, [0.0, 5.0, 10.0, 15.0, 20.0]),
        (0.0, 2e-6, [0.0, 5e-7, 1e-6, 1.5e-6, 2e-6]),
        (5.0, 5.0, [5.0]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.123456, "0.1235"),
        (-2.5, "−2.5"),
        (1.5e-6, "1.5e−6"),
        (1e-7, "1e−7"),
        (12345.6, "12346"),
        (2.5e7, "2.5e7"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert short_number(value) == text


def test_a_rising_curve_rises_inside_the_frame() -> None:
    points = points_of(curve_svg([Series("s", [0, 10, 20], [0.5, 0.6, 0.8])], width=400, height=200))
    xs, ys = zip(*points, strict=True)
    assert list(xs) == sorted(xs) and list(ys) == sorted(ys, reverse=True)
    assert xs[0] >= 0 and xs[-1] <= 400 and min(ys) >= 0 and max(ys) <= 200
    assert xs[1] == pytest.approx((xs[0] + xs[2]) / 2, abs=0.1)


def test_values_can_be_read_by_hovering() -> None:
    svg = curve_svg([Series("score", [0, 10], [0.5, 0.625], [0.4, 0.6], [0.55, 0.65])])
    assert "epoch 10\nscore 0.625 [0.6, 0.65]" in svg and svg.count("<title>") == 2


def test_a_file_of_its_own_is_well_formed_and_escaped() -> None:
    series = [Series("a <&> b", [0, 1, 2], [1.0, math.nan, 3.0]), Series("c", [0, 1, 2], [2.0, 2.0, math.inf])]
    root = ElementTree.fromstring(curve_svg(series, 'title "<&>"', standalone=True))
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and root.attrib["aria-label"] == 'title "<&>"'
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "a <&> b" in texts and 'title "<&>"' in texts
    assert "nan" not in curve_svg(series).lower() and "inf" not in curve_svg(series)


@pytest.mark.parametrize(
    "series",
    [
        Series("constant", [0, 1, 2], [0.7, 0.7, 0.7]),
        Series("zero", [0, 1], [0.0, 0.0]),
        Series("one point", [3], [0.7], [0.6], [0.8]),
        Series("no band at one end", [0, 1, 2], [0.1, 0.2, 0.3], [math.nan, 0.1, 0.2], [math.nan, 0.3, 0.4]),
        Series("nothing", [], []),
        Series("only nan", [0, 1], [math.nan, math.nan]),
        Series("huge", [0, 1], [-1e30, 1e30]),
    ],
)
def test_odd_curves_still_draw(series: Series) -> None:
    svg = curve_svg([series], standalone=True)
    root = ElementTree.fromstring(svg)
    for number in re.findall(r' (?:x|y|cx|cy|x1|x2|y1|y2)="([^"]*)"', ElementTree.tostring(root, encoding="unicode")):
        assert math.isfinite(float(number)) and -1 <= float(number) <= 641, number


def test_many_curves_are_all_named_inside_the_picture() -> None:
    series = [Series(f"method {number}", [0, 1], [number, number]) for number in range(10)]
    root = ElementTree.fromstring(curve_svg(series, "title", standalone=True))
    names = {one.name for one in series}
    named = {text.text: text for text in root.iter() if text.tag.endswith("text") and text.text in names}
    assert len(named) == 10
    assert len({(text.get("x"), text.get("y")) for text in named.values()}) == 10
    assert all(float(text.get("x", "nan")) < 560 for text in named.values())
    style = next(one.text for one in root.iter() if one.tag.endswith("style"))
    assert all(f"--s{number}:" in style and f".c{number}{{" in style for number in range(10))


def test_long_series_are_averaged() -> None:
    y = np.linspace(0, 1, 5000)
    points = points_of(curve_svg([Series("s", range(5000), y.tolist())]))
    assert len(points) == 240


def test_what_cannot_be_drawn_is_named() -> None:
    with pytest.raises(ValueError, match="1 to 10 series, got 0"):
        curve_svg([])
    with pytest.raises(ValueError, match=r"series 's' has columns of \[2, 1, 1, 1\]"):
        curve_svg([Series("s", [0, 1], [1.0])])


def labels(svg: str) -> list[tuple[float, float, float, str]]:
    """(left, right, y, text) of every label, by the estimate of its width."""
    found = []
    pattern = r'<text(?: class="name")? x="([^"]+)" y="([^"]+)"(?: text-anchor="(\w+)")?>([^<]*)'
    for x, y, anchor, text in re.findall(pattern, svg):
        width = text_width(text)
        left = float(x) - {"": 0.0, "middle": width / 2, "end": width}[anchor]
        found.append((left, left + width, float(y), text))
    return found


@pytest.mark.parametrize("last", [9, 1_000, 120_000, 3_000_000])
@pytest.mark.parametrize("width", [300, 440, 640])
def test_labels_of_the_axes_are_whole_and_apart(last: int, width: int) -> None:
    x = [last * i / 5 for i in range(6)]
    drawn = labels(curve_svg([Series("a", x, [-123456.0, 1, 2, 3, 4, 5])], width=width, height=180))
    assert all(left >= -1 and right <= width for left, right, _, _ in drawn)
    for row in {y for _, _, y, _ in drawn}:
        spans = sorted((left, right) for left, right, y, _ in drawn if y == row)
        assert all(before[1] < after[0] for before, after in pairwise(spans))
    assert len([1 for _, _, _, text in drawn if text not in ("", "epoch")]) > 3


def test_a_legend_that_does_not_fit_beside_the_title_goes_below() -> None:
    names = ["reward weighted regression", "a very long name of a curve", "best_of_n", "reinforce"]
    curves = [Series(name, [0, 1], [0, 1]) for name in names]
    for count in (2, 4):
        drawn = labels(curve_svg(curves[:count], "held-out score", width=440, height=190))
        assert {text for *_, text in drawn} >= set(names[:count])
        assert all(right <= 440 for _, right, _, _ in drawn)
        for row in {y for _, _, y, _ in drawn}:
            spans = sorted((left, right) for left, right, y, _ in drawn if y == row)
            assert all(before[1] < after[0] for before, after in pairwise(spans))
