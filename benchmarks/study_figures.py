"""The figures of studies: median over seeds with the range of the seeds, against epochs, network passes or seconds."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from study import score

from prdp.reports.charts import CHART_STYLE, STANDALONE_STYLE, Series, curve_svg

Line = Mapping[str, Any]
BACKWARD_COST = 2
"""Forward passes that a backward pass is counted as."""


def passes_per_epoch(line: Line) -> float:
    """Millions of forward passes through the network that an epoch costs, a backward pass counted as two."""
    spent = line["budget"]
    return float(spent["forward_passes"] + BACKWARD_COST * spent["backward_passes"]) / epochs_of(line) / 1e6


def seconds_per_epoch(line: Line) -> float:
    """Wall-clock seconds that an epoch took, evaluations left out."""
    curve = line["curve"]
    return float(curve["seconds"][0] / reached(line)) if curve["seconds"] else 0.0


def epochs_of(line: Line) -> int:
    """Epochs that a run was to have."""
    return int(line["budget"]["updates"] / updates_per_epoch(line))


def updates_per_epoch(line: Line) -> int:
    """K of a run."""
    told = [word for word in (*line["base"], *line["overrides"]) if word.startswith("updates_per_epoch=")]
    return int(told[-1].partition("=")[2]) if told else 1


def reached(line: Line) -> float:
    """Epochs that a run had when its seconds were told."""
    blocks = line["curve"].get("epoch", [])
    if not blocks:
        return float(epochs_of(line))
    # Each is the mean of as many epochs, and the first begins with 1.
    return float(blocks[-1] + (blocks[0] - 1 if len(blocks) > 1 else 0))


def held_out(
    lines: Sequence[Line], names: Sequence[str], per_epoch: Callable[[Line], float] | None = None
) -> tuple[list[Series], float]:
    """The held-out score of each method.

    Args:
        lines: final runs.
        names: of the methods, in the order of their curves.
        per_epoch: what an epoch is worth on the x-axis; epochs when there is none. The median of the seeds counts.

    Returns:
        the curves, and the value below which nothing is drawn: scores under it, and those of a run that has diverged,
        are drawn there.
    """
    shown = {name: [line for line in lines if line["method"] == name] for name in names}
    scores = [line["curve"]["eval_score"] for runs in shown.values() for line in runs]
    floor = _floor(scores)
    found = []
    for name, runs in shown.items():
        if not runs:
            continue
        epochs = max((run["curve"]["eval_epoch"] for run in runs), key=len)
        if all("failed" in run for run in runs):
            every = max(epochs[-1], 1) if len(epochs) < 2 else epochs[1]
            epochs = [*epochs, epochs[-1] + every]
        values = np.full((len(runs), len(epochs)), floor)
        for row, run in zip(values, runs, strict=True):
            own = np.nan_to_num(run["curve"]["eval_score"], nan=floor)
            row[: len(own)] = np.maximum(own, floor)
        worth = 1.0 if per_epoch is None else float(np.median([per_epoch(run) for run in runs]))
        found.append(_series(name, np.multiply(epochs, worth), values))
    return found, floor


def sampled_reward(lines: Sequence[Line], names: Mapping[str, str]) -> list[Series]:
    """The mean reward of the images that were trained on, by epoch.

    Args:
        lines: final runs.
        names: of methods, and what their curves are called.
    """
    shown = {name: [line for line in lines if line["method"] == name] for name in names}
    floor = _floor([line["curve"]["reward_mean"] for runs in shown.values() for line in runs])
    found = []
    for name, runs in shown.items():
        if not runs:
            continue
        epochs = np.array(max((run["curve"]["epoch"] for run in runs), key=lambda blocks: blocks[-1]))
        values = np.full((len(runs), len(epochs)), floor)
        for row, run in zip(values, runs, strict=True):
            own = np.maximum(np.nan_to_num(run["curve"]["reward_mean"], nan=floor), floor)
            row[:] = np.interp(epochs, run["curve"]["epoch"], own, right=floor if "failed" in run else own[-1])
        found.append(_series(names[name], epochs, values))
    return found


def trade(
    lines: Sequence[Line],
    curves: Mapping[str, Sequence[str]],
    axes: tuple[str, str],
    bound: Sequence[tuple[float, float]] = (),
) -> list[Series]:
    """One measure of final policies against another, means over seeds, as points or joined.

    Args:
        lines: final runs.
        curves: name -> the methods that it joins, by x.
        axes: paths of x and y, as `study.score` takes them.
        bound: (x, y) of the best there is, by x, drawn first; methods beyond it are left out.
    """
    drawn = [Series("the optimum", [x for x, _ in bound], [y for _, y in bound])] if bound else []
    farthest = bound[-1][0] if bound else math.inf
    for name, methods in curves.items():
        points = sorted(point for method in methods if (point := _mean_point(lines, method, axes)) is not None)
        points = [point for point in points if point[0] <= farthest]
        if points:
            drawn.append(Series(name, [x for x, _ in points], [y for _, y in points]))
    return drawn


def _mean_point(lines: Sequence[Line], name: str, axes: tuple[str, str]) -> tuple[float, float] | None:
    own = [[score(line, axis) for axis in axes] for line in lines if line["method"] == name and "failed" not in line]
    x, y = np.mean(own, 0) if own else (np.nan, np.nan)
    return (float(x), float(y)) if np.isfinite([x, y]).all() else None


def side_by_side(panels: Sequence[tuple[str, Sequence[Series]]], width: int = 440, height: int = 260) -> str:
    """Charts in a row, as one file: a title and the curves of each."""
    drawn = []
    for number, (title, series) in enumerate(panels):
        picture = curve_svg(series, title, width=width, height=height)
        drawn.append(re.sub("^<svg ", f'<svg x="{number * width}" width="{width}" height="{height}" ', picture))
    whole = width * len(panels)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{whole}" height="{height}" viewBox="0 0 {whole} {height}">'
        f'<style>{STANDALONE_STYLE}{CHART_STYLE}</style><rect class="paper" width="{whole}" height="{height}" rx="8"/>'
        f"{''.join(drawn)}</svg>\n"
    )


def _floor(scores: Sequence[Sequence[float]]) -> float:
    """Half as far below the start as the best is above it."""
    start, best = scores[0][0], max(max(one) for one in scores)
    return float(start - 0.5 * (best - start))


def _series(name: str, x: np.ndarray, values: np.ndarray) -> Series:
    band = (values.min(0).tolist(), values.max(0).tolist()) if len(values) > 1 else (None, None)
    return Series(name, x.tolist(), np.median(values, 0).tolist(), *band)
