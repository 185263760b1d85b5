"""The charts of the page: of one run as its report has them, of several a curve a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from prdp.reports.charts import LIGHT, Series, curve_svg, short_number
from prdp.reports.report_data import RunData, training_curve
from prdp.reports.report_sections import TRAINING
from prdp.reports.report_text import label
from prdp.reports.watch.watched_evaluations import WatchedEvaluations
from prdp.reports.watch.watched_run import WatchedRun
from prdp.support.printable import printable

MOST_RUNS = len(LIGHT)
"""As many as there are colours."""
_POINTS = 120
_SPEED = (
    (
        "Images per second",
        "Of a whole epoch, and of sampling and learning alone.",
        ("images_per_second/epoch", "images_per_second/sample", "images_per_second/learn"),
    ),
    (
        "Seconds",
        "Of an epoch, of its stages, and of an evaluation.",
        ("time/epoch", "time/sample", "time/score", "time/learn", "time/evaluate"),
    ),
)

Metrics = Sequence[tuple[str, str]]


def charts(runs: Mapping[str, WatchedRun], more: bool, wide: bool = True) -> dict[str, list[dict[str, str]]]:
    """Section of the page -> its charts, each {"title", "note", "svg", "summary"}; the summary is for screen readers.

    Args:
        runs: name -> run, in the order of the colours; at most `MOST_RUNS`.
        more: whether the metrics that no section names are drawn, too.
        wide: whether the held-out score is drawn for a screen that is wider than a phone's.
    """
    found = {
        "heldout": _heldout(runs, wide),
        "parts": _parts(runs, lambda item: item.curves()[1], "score"),
        "looks": _parts(runs, lambda item: item.picture_curves(), "diversity"),
        "training": [],
        "speed": [],
        "more": [],
    }
    used = {"weights_version"}
    for title, note, metrics in TRAINING:
        used.update(name for name, _ in metrics)
        found["training"] += _drawn(runs, title, note, metrics)
    for title, note, names in _SPEED:
        found["speed"] += _drawn(runs, title, note, [(name, name.rpartition("/")[2]) for name in names])
    if more:
        others = {name for run in runs.values() for name in run.data.metrics} - used
        skipped = ("time/", "images_per_second/", "eval/score", "eval/pictures/")
        for name in sorted(one for one in others if not one.startswith(skipped)):
            found["more"] += _drawn(runs, name, "", ((name, name),))
    return found


def heldout_curve(run: WatchedRun) -> tuple[int, Series | None]:
    """(number of prompts, curve of the score): over the prompts that all evaluations share.

    While evaluations are still being read, or where their folders are missing, the log tells, and the number is 0.
    """
    prompts, curves = (0, {}) if run.evaluations.waiting else run.evaluations.curves()
    if "score" in curves:
        return prompts, curves["score"]
    return 0, _logged_score(run.data)


def _logged_score(run: RunData) -> Series | None:
    item = run.series("eval/score")
    if item is None:
        return None
    low, high = (
        dict(zip(*run.metrics.get(name, ([], [])), strict=True)) for name in ("eval/score_low", "eval/score_high")
    )
    edges = [[edge.get(int(epoch), math.nan) for epoch in item.x] for edge in (low, high)]
    return Series("score", item.x, item.y, *edges)


def _heldout(runs: Mapping[str, WatchedRun], wide: bool) -> list[dict[str, str]]:
    curves, counts = {}, set()
    for name, run in runs.items():
        prompts, curve = heldout_curve(run)
        counts.add(prompts)
        curves[name] = curve
    [count, *others] = sorted(counts) or [0]
    which = f"the {count} prompts that every evaluation has" if count and not others else "held-out prompts"
    note = f"Mean score with its 95% interval, over {which}."
    box = _box("Held-out score", note, curves, width=900 if wide else 300, height=280 if wide else 200)
    return [box] if box else []


def _parts(
    runs: Mapping[str, WatchedRun], curves_of: Callable[[WatchedEvaluations], Mapping[str, Series]], without: str
) -> list[dict[str, str]]:
    """A chart for each of what evaluations know besides the score, below two evaluations none."""
    found: dict[str, dict[str, Series | None]] = {}
    for name, run in runs.items():
        if not run.evaluations.waiting:
            for part, curve in curves_of(run.evaluations).items():
                if part != without and len(curve.x) > 1:
                    found.setdefault(part, dict.fromkeys(runs))[name] = curve
    return [box for part, curves in found.items() if (box := _box(label(part), "", curves))]


def _drawn(runs: Mapping[str, WatchedRun], title: str, note: str, metrics: Metrics) -> list[dict[str, str]]:
    """One chart with a curve a metric for one run; a chart a metric with a curve a run for several."""
    if len(runs) == 1:
        [run] = runs.values()
        curves = {text: training_curve(run.data, name) for name, text in metrics}
        box = _box(title, note, {text: curve for text, curve in curves.items() if curve is not None}, legend=True)
        return [box] if box else []
    boxes = []
    for name, text in metrics:
        several = {run_name: training_curve(run.data, name) for run_name, run in runs.items()}
        heading = title if len(metrics) == 1 else f"{title}: {text}"
        if box := _box(heading, note if len(metrics) == 1 else "", several):
            boxes.append(box)
    return boxes


def _box(
    title: str,
    note: str,
    curves: Mapping[str, Series | None],
    legend: bool = False,
    width: int = 300,
    height: int = 180,
) -> dict[str, str] | None:
    """A chart; of curves that are not there the colour stays free. None without any."""
    if not any(curve is not None and any(map(math.isfinite, curve.y)) for curve in curves.values()):
        return None
    series = [
        Series(printable(name), curve.x, curve.y, curve.low, curve.high) if curve else Series(printable(name), [], [])
        for name, curve in curves.items()
    ]
    heading = " " if legend and len(series) > 1 else ""
    svg = curve_svg(series, heading, width=width, height=height, legend=legend, points=_POINTS)
    return {"title": printable(title), "note": note, "svg": svg, "summary": "; ".join(filter(None, map(_told, series)))}


def _told(curve: Series) -> str:
    points = [(x, y) for x, y in zip(curve.x, curve.y, strict=True) if math.isfinite(y)]
    if not points:
        return ""
    (start, first), (end, last) = points[0], points[-1]
    if len(points) == 1:
        return f"{curve.name}: {short_number(first)} at epoch {short_number(start)}"
    return (
        f"{curve.name}: from {short_number(first)} at epoch {short_number(start)} "
        f"to {short_number(last)} at epoch {short_number(end)}"
    )
