"""Tables of studies: what methods reached, with intervals over seeds, what they cost, and what was tried."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from study import Method, Study, score
from study_figures import Line

from prdp.tracking.statistics import mean_interval

_SHARPEST_TILT = 0.25
"""Least kl_weight for which the error of the chain is told."""


@dataclass(frozen=True)
class Column:
    """A column of a table: what it shows of a finished run.

    Attributes:
        path: dotted, into the run's measures.
        start, end: paths of values that are to be shown as 0 and 1.
    """

    title: str
    path: str
    start: str = ""
    end: str = ""
    digits: int = 3

    def of(self, line: Line) -> float:
        """The value in a final run; minus infinity where there is none."""
        value = score(line, self.path)
        if self.start:
            low, high = score(line, self.start), score(line, self.end)
            value = (value - low) / (high - low) if math.isfinite(low) and high > low else -math.inf
        return value


_MIXTURES = (
    Column("E[r] - w KL", "heldout.objective"),
    Column("E[r]", "heldout.reward"),
    Column("KL", "heldout.kl"),
    Column("of the way", "heldout.objective", start="heldout_start.objective", end="heldout.objective_optimum"),
    Column("KL to optimum", "heldout.kl_to_optimum"),
    Column("energy distance", "heldout.energy_distance"),
    Column("E[r] - w KL, seen", "train.objective"),
    Column("E[r], seen", "train.reward"),
)
_SCORE, _JUDGE = Column("score", "heldout.score"), Column("judge", "heldout.shapes_judge")
_PICTURES = (
    _SCORE,
    _JUDGE,
    Column("compressibility, -kB", "heldout.compressibility"),
    Column("diversity", "heldout.diversity"),
    Column("training reward", "curve.reward_mean"),
    Column("drift", "heldout.drift", digits=4),
    Column("logratio_ref", "curve.logratio_ref", digits=4),
)


def of_mixtures(lines: Sequence[Line]) -> bool:
    """Whether runs are of the world whose optimum is known; of pictures otherwise."""
    return any("kl_weight" in line for line in lines)


def columns_of(lines: Sequence[dict[str, Any]]) -> tuple[Column, ...]:
    """What the world of a study measures, as far as its runs did; no score where the judge is but a part of it."""
    world = _MIXTURES if of_mixtures(lines) else _PICTURES
    told = [column for column in world if any(math.isfinite(column.of(line)) for line in lines)]
    return tuple(column for column in told if column is not _SCORE or _JUDGE not in told)


def result_rows(study: Study, methods: Sequence[Method], finals: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A row for each method that has finished final runs."""
    columns, base = columns_of(finals), next(iter(study.methods))
    rows = [["method", "seeds", "diverged", *(column.title for column in columns), f"beside {base}"]]
    first = {line["seed"]: score(line, study.criterion) for line in finals if line["method"] == base}
    for method in methods:
        own = [line for line in finals if line["method"] == method.name]
        if not own:
            continue
        failed = sum("failed" in line for line in own)
        cells = [interval([column.of(line) for line in own], column.digits) for column in columns]
        paired = [score(line, study.criterion) - first[line["seed"]] for line in own if line["seed"] in first]
        rows.append([method.name, str(len(own)), str(failed), *cells, "" if method.name == base else interval(paired)])
    return rows


def reference_rows(finals: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Where everybody starts, and in the world of mixtures what nobody can pass."""
    line = next((line for line in finals if "heldout_start" in line), None)
    if line is None:
        return []
    start = line["heldout_start"]
    if "kl_weight" not in line:
        at_start = {"heldout": start}
        cells = [interval([column.of(at_start)], column.digits) for column in columns_of(finals)]
        return [["the start", "", "", *cells, ""]]
    seen, chain = line["train_start"], line["heldout_chain"]
    # The chain's normaliser is estimated from its samples, which a sharper tilt hardly reaches.
    told = line["kl_weight"] >= _SHARPEST_TILT
    off = f"0, {chain['log_z'] - chain['log_z_chain']:.3f} by its steps" if told else "0"
    distances = ((start["kl_to_optimum"], start["energy_distance"]), (off, "0"))
    rows = []
    for name, end, kl, between in (("reference", "", "0", distances[0]), ("optimum", "_optimum", "", distances[1])):
        sides = [[one[f"objective{end}"], one[f"reward{end}"]] for one in (start, seen)]
        cells = [f"the {name}", "", "", *sides[0], kl, str(int(name == "optimum")), *between, *sides[1], ""]
        rows.append([cell if isinstance(cell, str) else f"{cell:z.3f}" for cell in cells])
    return rows


def budget_rows(finals: Sequence[dict[str, Any]], methods: Sequence[Method]) -> list[list[str]]:
    """What a run of each method cost."""
    rows = [["method", "images", "updates", "forward passes", "with backward", "training seconds, median"]]
    for method in methods:
        own = [line for line in finals if line["method"] == method.name]
        if own:
            spent = own[0]["budget"]
            seconds = [line["curve"]["seconds"][0] for line in own if line["curve"]["seconds"]]
            passes = (spent["images"], spent["updates"], spent["forward_passes"], spent["backward_passes"])
            rows.append([method.name, *(f"{count:,}" for count in passes), f"{np.median(seconds):.0f}"])
    return rows


def short(override: str) -> str:
    """'clip_range=0.02' of 'objective.clip_range=0.02'."""
    key, _, value = override.partition("=")
    return f"{key.rpartition('.')[2]}={value}"


def search_rows(study: Study, results: Sequence[dict[str, Any]], finals: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Every point that was tried, the best first in bold."""
    rows = [["method", f"points, with {study.criterion} on validation prompts"]]
    for method in study.methods.values():
        tried = [line for line in results if line["method"] == method.name and line["phase"] == "search"]
        fixed = set(method.overrides)
        points = []
        for line in sorted(tried, key=lambda line: -score(line, study.criterion)):
            name = ", ".join(short(one) for one in line["overrides"] if one not in fixed)
            value = score(line, study.criterion)
            points.append(f"{name}: {value:.3f}" if math.isfinite(value) else f"{name}: diverged")
        if points:
            rows.append([method.name, "; ".join([f"**{points[0]}**", *points[1:]])])
    return rows


def interval(values: Sequence[float], digits: int = 3) -> str:
    """Mean and 95% Student interval over seeds; a single value alone."""
    mean, _, high = mean_interval([value for value in values if math.isfinite(value)])
    if math.isnan(mean):
        return ""
    return number(mean, digits) if math.isnan(high) else f"{number(mean, digits)} ± {number(high - mean, digits)}"


def number(value: float, digits: int) -> str:
    """With so many digits after the point, or as a power of ten from a million on."""
    return f"{value:z.{digits}f}" if abs(value) < 1e6 else f"{value:.1e}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Markdown; the first row is the head."""
    head, *body = rows
    lines = ["| " + " | ".join(row) + " |" for row in (head, *body)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])
