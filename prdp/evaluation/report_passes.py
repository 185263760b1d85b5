"""Quality against passes, cascades at other rates, and where wins lie: three parts of the report of an evaluation."""

from __future__ import annotations

import dataclasses
import json
from html import escape

import numpy as np

from prdp.collaboration.cascade_files import read_cascade
from prdp.evaluation.models import EvaluatedModel, model_digest
from prdp.evaluation.results import ALL, Interval, Results
from prdp.evaluation.routing import Routed
from prdp.evaluation.samplers import sampler_of
from prdp.reports.charts import Series, curve_svg
from prdp.reports.report_text import interval, label, score, signed, tone

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
            if series:
                chart = curve_svg(series, f"{label(reward)}, {prompt_set}", "passes of the network for an image")
                parts.append(f'<div class="panel strip">{chart}</div>')
                if left_out:
                    parts.append(f'<p class="lead">Not drawn: {escape(", ".join(left_out))}.</p>')
            parts.append(_routed_table(results, prompt_set, reward))
    if not any(parts):
        return ""
    return (
        '<h2>Quality against passes</h2><p class="lead">A line joins what one model reaches in several numbers of '
        "steps. Of a cascade that draws every image twice, every rate from 10% to 90% is known: routed by its "
        "estimator, where that is among the rewards, and by chance; the bound is a router that knows this reward.</p>"
        f"{''.join(parts)}"
    )


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
    parts = []
    for one in results.wins:
        rows = "".join(
            f'<tr><td>{what}</td><td class="num">{_change(getattr(one, name))}</td></tr>'
            for what, name in _OBSERVATIONS
        )
        title = f"{one.model} on {one.prompts} by {one.reward}: better {one.wins[0]:.0%}, worse {one.losses[0]:.0%}"
        parts.append(
            f'<details class="panel" style="margin-top:12px"><summary>{escape(title)}</summary><div class="scroll">'
            f"<table>{rows}</table></div></details>"
        )
    return (
        f'<h2>Where wins lie</h2><p class="lead">Against {escape(results.against or "")}, image by image of the same '
        f"noise. Distance in {escape(results.features)}; complexity is the size of the picture's PNG file.</p>"
        f"{''.join(parts)}"
    )


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


def _routed_table(results: Results, prompt_set: str, reward: str) -> str:
    rows = [
        one
        for one in results.routed
        if (one.prompts, one.reward, one.part) == (prompt_set, reward, ALL) and one.score[0] == one.score[0]
    ]
    if not rows:
        return ""
    heads = ("cascade", "drawn again", "passes", label(reward), "above chance", "bound")
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    return f'<div class="panel scroll"><table><tr>{head}</tr>{"".join(map(_routed_row, rows))}</table></div>'


def _routed_row(one: Routed) -> str:
    return (
        f'<tr><td>{escape(one.cascade)}</td><td class="num">{one.share:.0%}</td><td class="num">{one.passes:.3g}</td>'
        f'<td class="num">{score(one.score[0])} <span class="ci">{interval(one.score)}</span></td>'
        f'<td class="num">{_change(one.over_chance)}</td><td class="num">{score(one.oracle)}</td></tr>'
    )


def _change(value: Interval) -> str:
    sign = 1 if value[1] > 0 else -1 if value[2] < 0 else 0
    return (
        f'<span class="change num {tone(sign, value[0])}">{signed(value[0])}</span> '
        f'<span class="ci">{interval(value, signed)}</span>'
    )
