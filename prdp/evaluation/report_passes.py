"""Quality against passes, cascades at other rates, and where wins lie: three parts of the report of an evaluation."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
from markupsafe import Markup

from prdp.collaboration.cascade_files import read_cascade
from prdp.evaluation.models import EvaluatedModel, model_digest
from prdp.evaluation.results import ALL, Interval, Results
from prdp.evaluation.routing import Routed
from prdp.evaluation.samplers import sampler_of
from prdp.reports.charts import Series, curve_svg
from prdp.reports.report_text import label, tone
from prdp.reports.templates import render

_MOST = 10
"""Curves of a chart."""
_OBSERVATIONS = (
    ("wins among the half of the prompts whose images differ most, less those among the others", "far_over_near"),
    ("the same of the score's difference", "gain_far_over_near"),
    ("distance of the images with the complexity of the partner's, rank correlation", "distance_by_complexity"),
    ("distance of the images with the words of the prompt, rank correlation", "distance_by_length"),
    ("the score's difference with the complexity of the partner's image, rank correlation", "gain_by_complexity"),
)


def passes_section(results: Results) -> str:
    """The figure of each reward and prompt set, and a table of cascades at other rates; empty where all models take
    equally many passes.
    """
    parts = []
    for prompt_set in results.work.prompts:
        for reward in results.rewards:
            series, left_out = curves(results, prompt_set, reward)
            title = f"{label(reward)}, {prompt_set}"
            chart = curve_svg(series, title, "passes of the network for an image") if series else ""
            routed = _routed(results, prompt_set, reward)
            if chart or routed:
                parts.append({"chart": Markup(chart), "left_out": left_out, "routed": routed, "reward": reward})
    return render("evaluation/passes.html", parts=parts) if parts else ""


def curves(results: Results, prompt_set: str, reward: str) -> tuple[list[Series], list[str]]:
    """At most ten curves, and the models that are not drawn; no curves where passes do not differ or are not known."""
    points = {model.name: _point(results, model.name, prompt_set, reward) for model in results.models}
    passes = {x for x, _ in points.values()}
    if len(passes) < 2 or not np.isfinite(list(passes)).all():
        return [], []
    of_cascades = _cascade_curves(results, prompt_set, reward)
    drawn = {name for names, _ in of_cascades for name in names}
    lines: dict[str, list[str]] = {}
    for model in results.models:
        if model.name not in drawn:
            lines.setdefault(_kind(results, model), []).append(model.name)
    found = []
    for names in sorted(lines.values(), key=len, reverse=True):
        ordered = sorted(names, key=lambda name: points[name][0])
        xs, ys = zip(*(points[name] for name in ordered), strict=True)
        found.append((names, Series(names[0], list(xs), list(ys))))
    longest = [one for one in found if len(one[0]) > 1]
    every = [*longest, *of_cascades, *(one for one in found if len(one[0]) == 1)]
    return [series for _, series in every[:_MOST]], [name for names, _ in every[_MOST:] for name in names]


def wins_section(results: Results) -> str:
    """A table for every model: how often it wins, and where."""
    if not results.wins:
        return ""
    tables = []
    for one in results.wins:
        title = f"{one.model} on {one.prompts} by {one.reward}: better {one.wins[0]:.0%}, worse {one.losses[0]:.0%}"
        rows = [(what, value, _tone(value)) for what, name in _OBSERVATIONS for value in (getattr(one, name),)]
        tables.append((title, rows))
    against = results.against or ""
    return render("evaluation/wins.html", tables=tables, against=against, features=results.features)


def _cascade_curves(results: Results, prompt_set: str, reward: str) -> list[tuple[list[str], Series]]:
    """(models that a curve stands for, curve): by score, by chance, the bound."""
    found: list[tuple[list[str], Series]] = []
    chosen = [one for one in results.routed if (one.prompts, one.reward, one.part) == (prompt_set, reward, ALL)]
    for name in dict.fromkeys(one.cascade for one in chosen):
        own = [one for one in chosen if one.cascade == name]
        ends = [_point(results, model, prompt_set, reward) for model in (own[0].student, name)]
        alike = [model.name for model in results.models if _same_strategy(results, name, model)]
        scored = [one for one in own if one.score[0] == one.score[0]]
        if scored:
            found.append((alike, _curve(f"{name}, by score", ends, [(one.passes, one.score[0]) for one in scored])))
        found.append(([name], _curve(f"{name}, by chance", ends, [(one.passes, one.by_chance) for one in own])))
        found.append(([], _curve(f"{name}, bound", ends, [(one.passes, one.oracle) for one in own])))
    return found


def _curve(name: str, ends: list[tuple[float, float]], points: list[tuple[float, float]]) -> Series:
    xs, ys = zip(*sorted([*ends, *points]), strict=True)
    return Series(name, list(xs), list(ys))


def _same_strategy(results: Results, name: str, other: EvaluatedModel) -> bool:
    """Whether a model is that cascade at this or another rate, routed by score."""
    [model] = [one for one in results.models if one.name == name]
    if other.kind != "cascade" or other.path is None or model.path is None:
        return False
    one, two = read_cascade(model.path), read_cascade(other.path)
    return (one.student, one.teacher, one.first, one.strategy) == (two.student, two.teacher, two.first, two.strategy)


def _kind(results: Results, model: EvaluatedModel) -> str:
    """Equal for models that differ by their number of steps alone."""
    if model.kind == "cascade":
        return model.name
    sampler = dataclasses.asdict(sampler_of(results.work.config, model)) | {"steps": 0}
    return f"{model_digest(model)}|{json.dumps(sampler, sort_keys=True)}"


def _point(results: Results, model: str, prompt_set: str, reward: str) -> tuple[float, float]:
    cell = results.cell(model, prompt_set, reward)
    assert cell is not None
    return float(results.images[model, prompt_set].network_passes.mean()), cell.score[0]


def _routed(results: Results, prompt_set: str, reward: str) -> list[tuple[Routed, str]]:
    """What cascades reach at other rates by this reward, with the style of what routing gains over chance."""
    return [
        (one, _tone(one.over_chance))
        for one in results.routed
        if (one.prompts, one.reward, one.part) == (prompt_set, reward, ALL) and one.score[0] == one.score[0]
    ]


def _tone(value: Interval) -> str:
    return tone(1 if value[1] > 0 else -1 if value[2] < 0 else 0, value[0])
