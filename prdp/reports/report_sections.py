"""The report's sections: pictures, curves, skills, timing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from prdp.reports.charts import Series, curve_svg, short_number
from prdp.reports.pictures import data_uri, grid_scores
from prdp.reports.report_data import Change, RunData, heldout_curves, takes_turns, timings, training_curve
from prdp.reports.report_text import label, score, tone
from prdp.reports.templates import render
from prdp.tracking.alarms import alarms
from prdp.tracking.console import format_seconds
from prdp.tracking.evaluations import Evaluation

_PIXELS = 160
"""Pictures narrower than this are shown pixel by pixel instead of smoothed."""
_STRIP_PROMPTS, _STRIP_COLUMNS = 4, 8

TRAINING: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    (
        "Reward",
        "Mean reward of the images sampled for training; the band is its 95% interval over prompts.",
        (("reward/mean", "mean"),),
    ),
    (
        "Reward spread",
        "Standard deviation over all images, and within a prompt's group, where learning takes its signal from.",
        (("reward/std", "all images"), ("reward/group_std", "within groups")),
    ),
    (
        "Held-out diversity",
        "Mean distance of a prompt's images from each other; near 0 the model shows one picture whatever the noise.",
        (("eval/diversity", "diversity"),),
    ),
    ("Loss", "The objective that an update descends.", (("loss", "loss"),)),
    ("logratio", "Mean log-ratio of the policy to the one that sampled.", (("logratio", "logratio"),)),
    ("approx_kl", "Divergence of the policy from the one that sampled.", (("approx_kl", "approx_kl"),)),
    ("clipfrac", "Share of log-ratios beyond the clip range.", (("clipfrac", "clipfrac"),)),
    (
        "logratio_ref",
        "Mean log-ratio of the policy to the frozen start: how far training has come.",
        (("logratio_ref", "logratio_ref"),),
    ),
    (
        "Prediction size",
        "Size of the predicted reward differences beside the true ones; far below 1 the KL weight, beta, does nothing.",
        (("prediction_size", "prediction_size"),),
    ),
    (
        "Evidence noise",
        "Error of evidence in half precision, and the share by which it moves coefficients. Where the former is not "
        "far below the clip range, clips act on rounding.",
        (
            ("evidence_noise", "evidence_noise"),
            ("ratio_error", "ratio_error"),
            ("coefficient_noise", "coefficient_noise"),
        ),
    ),
    ("Gradient norm", "Before clipping.", (("grad_norm", "grad_norm"),)),
)
"""Title of a chart, what it tells, and (metric, legend) of its curves."""


def pictures(run: RunData) -> str:
    """The same held-out prompts and noise, before and after."""
    shown = [item for item in run.evaluations if grid_scores(item)]
    if not shown:
        return ""
    before, after = shown[0], shown[-1] if len(shown) > 1 else None
    old, new = grid_scores(before), grid_scores(after) if after is not None else {}
    cards: list[_Card] = []
    for prompt in sorted({key[0] for key in old}):
        keys = [key for key in sorted(old) if key[0] == prompt][:2]
        text = old[keys[0]][0]
        shots: list[_Shot | None] = []
        for key in keys:
            shots.append(_shot(before, key, text, old[key][1], None))
            if after is not None:
                same = key in new and new[key][0] == text
                shots.append(_shot(after, key, text, new[key][1], old[key][1]) if same else None)
        cards.append(_Card(text, shots))
    large = any(shot is not None and shot.uri and not shot.pixels for card in cards for shot in card.shots)
    return render(
        "pictures.html", cards=cards, before=when(before), after="" if after is None else when(after), large=large
    )


def when(evaluation: Evaluation) -> str:
    """'before', or after how many epochs."""
    return "before" if evaluation.epoch == 0 else f"after {evaluation.epoch} epochs"


def filmstrip(run: RunData) -> str:
    """A few prompts at every evaluation; nothing below three evaluations."""
    shown = [item for item in run.evaluations if grid_scores(item)]
    if len(shown) < 3:
        return ""
    if len(shown) > _STRIP_COLUMNS:
        chosen = {round(i * (len(shown) - 1) / (_STRIP_COLUMNS - 1)) for i in range(_STRIP_COLUMNS)}
        shown = [item for i, item in enumerate(shown) if i in chosen]
    tables = [grid_scores(item) for item in shown]
    rows = []
    for key in [key for key in sorted(tables[0]) if key[1] == 0][:_STRIP_PROMPTS]:
        text = tables[0][key][0]
        shots = [
            _shot(item, key, text, table[key][1], None) if key in table and table[key][0] == text else None
            for item, table in zip(shown, tables, strict=True)
        ]
        rows.append((text, shots))
    return render("filmstrip.html", epochs=[item.epoch for item in shown], rows=rows)


def heldout_score(run: RunData) -> str:
    """The held-out score over the epochs, for the headline; nothing below two points."""
    prompts, curves = heldout_curves(run.evaluations)
    total = curves.get("score")
    if total is None or len(total.x) < 2:
        return ""
    return render("heldout_score.html", chart=Markup(curve_svg([total], width=440, height=190)), prompts=prompts)


def sub_scores(run: RunData) -> str:
    """Held-out sub-scores over the epochs; nothing below two evaluations."""
    prompts, curves = heldout_curves(run.evaluations)
    lead = f"What the score is made of, over the {prompts} prompts that every evaluation has; bands are 95% intervals."
    return _charts("Held-out sub-scores", lead, {name: item for name, item in curves.items() if name != "score"})


def warnings(run: RunData) -> str:
    """What somebody should look at; nothing without an alarm."""
    texts = [alarm.text[0].upper() + alarm.text[1:] for alarm in alarms(run.evaluations)]
    return render("warnings.html", alarms=texts) if texts else ""


def statistics(run: RunData) -> str:
    """Brightness, contrast and colour of the held-out pictures over the epochs; nothing below two evaluations."""
    prompts, curves = heldout_curves(run.evaluations, lambda item: item.pictures)
    lead = (
        f"Statistics of the held-out pictures of {prompts} prompts, which nothing is trained on. A reward that is "
        "exploited often shows here first."
    )
    shown = {name: item for name, item in curves.items() if name != "diversity"}
    return _charts("What the pictures look like", lead, shown)


def skills(run: RunData, overall: Change | None, parts: Sequence[Change], categories: Sequence[Change]) -> str:
    """Table of before, after and difference; of the only evaluation's means when there is one."""
    if overall is None:
        return _single_skills(run)
    groups = (("sub-scores", parts), ("score by category of prompt", categories))
    named = [(title, list(map(_skill, changes))) for title, changes in groups if changes]
    return render("skills.html", overall=_skill(overall), groups=named)


def training(run: RunData) -> str:
    """Curves of the training metrics, and all others folded away."""
    boxes, used = [], {"weights_version"}
    for title, note, names in TRAINING:
        used.update(name for name, _ in names)
        curves = [item for name, text in names if (item := training_curve(run, name, text)) is not None]
        if curves:
            boxes.append(_box(title, note, curves))
    others = [
        _box(name, "", [item])
        for name in sorted(run.metrics)
        if name not in used and not name.startswith(("time/", "images_per_second/", "eval/"))
        if (item := run.series(name)) is not None
    ]
    return render("training.html", boxes=boxes, others=others) if boxes or others else ""


def timing(run: RunData) -> str:
    """Where the time went."""
    rows = [
        {
            "stage": item.stage,
            "total": _total(item.seconds),
            "epochs": item.epochs,
            "each": short_number(item.seconds / item.epochs),
            "rate": "\N{EN DASH}" if math.isnan(item.images_per_second) else f"{item.images_per_second:.1f}",
            "share": "\N{EN DASH}" if math.isnan(item.share) else f"{item.share:.0%}",
            "width": None if math.isnan(item.share) else 100 * item.share,
        }
        for item in timings(run)
    ]
    if not rows:
        return ""
    whole = run.metrics.get("images_per_second/epoch")
    finite = [value for value in whole[1] if math.isfinite(value)] if whole else []
    pace = sum(finite) / len(finite) if finite else None
    return render("timing.html", rows=rows, meeting=_how_stages_meet(run), pace=pace)


def _how_stages_meet(run: RunData) -> str:
    cluster = run.config.get("cluster", {})
    if takes_turns(run):
        return "One process samples, scores and learns in turns."
    if cluster.get("kind") != "ray":
        return "The time of scoring is a part of the sample stage."
    ahead = " Sampling also goes on while the learner works." if cluster.get("max_staleness") else ""
    return f"Scoring goes on while sampling does; its time is summed over the reward actors.{ahead}"


@dataclass(frozen=True)
class _Shot:
    """A picture with its score; without a `uri` where the file is damaged."""

    uri: str | None
    alt: str
    value: float
    style: str
    pixels: bool


@dataclass(frozen=True)
class _Card:
    """A prompt with its pictures, in rows."""

    text: str
    shots: list[_Shot | None]


def _shot(evaluation: Evaluation, key: tuple[int, int], text: str, value: float, before: float | None) -> _Shot:
    alike = before is None or score(value) == score(before)
    style = "" if before is None or alike else "up" if value > before else "down"
    alt = f"{text}, epoch {evaluation.epoch}, score {score(value)}"
    try:
        uri, width = data_uri(evaluation.image_path(*key))
    except (ValueError, FileNotFoundError):
        return _Shot(None, alt, value, style, False)
    return _Shot(uri, alt, value, style, width < _PIXELS)


def _total(seconds: float) -> str:
    return f"{seconds:.1f}s" if seconds < 10 else format_seconds(seconds)


def _charts(title: str, lead: str, curves: Mapping[str, Series]) -> str:
    """A section of curves from evaluation to evaluation; nothing below two."""
    boxes = [_box(label(name), "", [item], _from_to(item)) for name, item in curves.items() if len(item.x) > 1]
    return render("charts.html", title=title, lead=lead, boxes=boxes) if boxes else ""


def _box(title: str, note: str, curves: list[Series], aside: str = "") -> dict[str, str]:
    chart = curve_svg(curves, "" if len(curves) == 1 else " ", width=300, height=180, name=title)
    return {"title": title, "note": note, "chart": Markup(chart), "aside": aside}


def _from_to(series: Series) -> str:
    values = [value for value in series.y if math.isfinite(value)]
    return f"{score(values[0])} \N{RIGHTWARDS ARROW} {score(values[-1])}" if len(values) > 1 else ""


def _skill(change: Change) -> dict[str, Any]:
    """A row of the table; the ends of its line in the coordinates of its picture, for values within 0 and 1."""
    before, after = change.before[0], change.after[0]
    drawn = 0 <= before <= 1 and 0 <= after <= 1
    return {
        "change": change,
        "style": tone(change.sign, change.difference[0]),
        "ends": (7 + 146 * before, 7 + 146 * after) if drawn else None,
    }


def _single_skills(run: RunData) -> str:
    if not run.evaluations:
        return ""
    summary = run.evaluations[-1].summary()
    # Pairs: a category may be called as a sub-score is.
    parts = [("score", summary["score"]), *summary["sub_scores"].items(), *summary["categories"].items()]
    return render("single_skills.html", parts=parts)
