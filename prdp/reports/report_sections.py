"""The report's sections: pictures, curves, skills, timing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from prdp.reports.charts import Series, curve_svg, short_number
from prdp.reports.pictures import data_uri, grid_scores
from prdp.reports.report_data import Change, RunData, heldout_curves, takes_turns, timings, training_curve
from prdp.reports.report_text import interval, label, score, signed, tone
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
        "Error of the log-ratios in half precision; where it is not far below the clip range, clips act on rounding.",
        (("evidence_noise", "evidence_noise"), ("ratio_error", "ratio_error")),
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
    cards = []
    large = False
    for prompt in sorted({key[0] for key in old}):
        keys = [key for key in sorted(old) if key[0] == prompt][:2]
        text = old[keys[0]][0]
        shots = []
        if after is not None:
            shots.append(f'<div class="head">{when(before)}</div><div class="head">{when(after)}</div>')
        for key in keys:
            picture, wide = _shot(before, key, text, old[key][1], None)
            large |= wide
            shots.append(picture)
            if after is not None:
                same = key in new and new[key][0] == text
                shots.append(_shot(after, key, text, new[key][1], old[key][1])[0] if same else "<div></div>")
        cards.append(
            f'<figure class="panel card"><figcaption>{escape(text)}</figcaption>'
            f'<div class="shots">{"".join(shots)}</div></figure>'
        )
    heading = "Before and after" if after is not None else "Held-out pictures"
    noise = " Each pair starts from the same noise." if after is not None else ""
    return (
        f'<h2>{heading}</h2><p class="lead">The first {len(cards)} held-out prompts as they come, none picked, with '
        f'the score of every image.{noise}</p><div class="cards{" large" if large else ""}">{"".join(cards)}</div>'
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
    keys = [key for key in sorted(tables[0]) if key[1] == 0][:_STRIP_PROMPTS]
    head = "".join(f"<th>epoch {item.epoch}</th>" for item in shown)
    rows = []
    for key in keys:
        text = tables[0][key][0]
        cells = []
        for item, table in zip(shown, tables, strict=True):
            same = key in table and table[key][0] == text
            cells.append(f"<td>{_shot(item, key, text, table[key][1], None)[0] if same else ''}</td>")
        rows.append(f"<tr><td>{escape(text)}</td>{''.join(cells)}</tr>")
    return (
        '<h2>On the way</h2><p class="lead">The same prompts and noise at the evaluations in between.</p>'
        f'<div class="panel strip scroll"><table><tr><th></th>{head}</tr>{"".join(rows)}</table></div>'
    )


def heldout_score(run: RunData) -> str:
    """The held-out score over the epochs, for the headline; nothing below two points."""
    prompts, curves = heldout_curves(run.evaluations)
    total = curves.get("score")
    if total is None or len(total.x) < 2:
        return ""
    note = f"Held-out score with its 95% interval, over the {prompts} prompts that every evaluation has."
    chart = curve_svg([total], width=440, height=190)
    return f'<figure class="curvebox">{chart}<figcaption>{note}</figcaption></figure>'


def sub_scores(run: RunData) -> str:
    """Held-out sub-scores over the epochs; nothing below two evaluations."""
    prompts, curves = heldout_curves(run.evaluations)
    boxes = [
        _box(label(name), "", [item], _from_to(item))
        for name, item in curves.items()
        if name != "score" and len(item.x) > 1
    ]
    if not boxes:
        return ""
    return (
        '<h2>Held-out sub-scores</h2><p class="lead">What the score is made of, over the '
        f"{prompts} prompts that every evaluation has; bands are 95% intervals.</p>"
        f'<div class="charts">{"".join(boxes)}</div>'
    )


def warnings(run: RunData) -> str:
    """What somebody should look at; nothing without an alarm."""
    found = alarms(run.evaluations)
    if not found:
        return ""
    items = "".join(f"<li>{escape(alarm.text[0].upper() + alarm.text[1:])}.</li>" for alarm in found)
    return (
        '<section class="panel warnings" aria-label="Look at it"><h2>Look at it</h2><p class="lead">Signs that '
        "training exploits the reward, or goes too far: beside the start, over the same prompts and noise, by "
        f"intervals of 95% for all comparisons together.</p><ul>{items}</ul></section>"
    )


def statistics(run: RunData) -> str:
    """Brightness, contrast and colour of the held-out pictures over the epochs; nothing below two evaluations."""
    prompts, curves = heldout_curves(run.evaluations, lambda item: item.pictures)
    boxes = [
        _box(label(name), "", [item], _from_to(item))
        for name, item in curves.items()
        if name != "diversity" and len(item.x) > 1
    ]
    if not boxes:
        return ""
    return (
        '<h2>What the pictures look like</h2><p class="lead">Statistics of the held-out pictures of '
        f"{prompts} prompts, which nothing is trained on. A reward that is exploited often shows here first.</p>"
        f'<div class="charts">{"".join(boxes)}</div>'
    )


def skills(run: RunData, overall: Change | None, parts: Sequence[Change], categories: Sequence[Change]) -> str:
    """Table of before, after and difference; of the only evaluation's means when there is one."""
    if overall is None:
        return _single_skills(run)
    rows = [_skill_row(overall, "total")]
    if parts:
        rows.append('<tr class="section"><td colspan="5">sub-scores</td></tr>')
        rows += [_skill_row(change) for change in parts]
    if categories:
        rows.append('<tr class="section"><td colspan="5">score by category of prompt</td></tr>')
        rows += [_skill_row(change) for change in categories]
    return (
        '<h2>Skill by skill</h2><p class="lead">Paired over the same prompts and noise. A difference is coloured when '
        "its 95% interval leaves out zero. The line runs from before (ring) to after (dot).</p>"
        '<div class="panel scroll"><table><tr><th>skill</th><th>before</th><th>after</th><th>difference</th>'
        f"<th></th></tr>{''.join(rows)}</table></div>"
    )


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
    if not boxes and not others:
        return ""
    more = (
        f'<details class="panel" style="margin-top:16px"><summary>{len(others)} more metrics</summary>'
        f'<div class="charts">{"".join(others)}</div></details>'
        if others
        else ""
    )
    return (
        '<h2>Training</h2><p class="lead">What the learner saw, epoch by epoch.</p>'
        f'<div class="charts">{"".join(boxes)}</div>{more}'
    )


def timing(run: RunData) -> str:
    """Where the time went."""
    rows = []
    for item in timings(run):
        rate = "\N{EN DASH}" if math.isnan(item.images_per_second) else f"{item.images_per_second:.1f}"
        each = short_number(item.seconds / item.epochs)
        bar = "" if math.isnan(item.share) else f'<span class="bar" style="width:{100 * item.share:.1f}%"></span>'
        share = "\N{EN DASH}" if math.isnan(item.share) else f"{item.share:.0%}"
        rows.append(
            f'<tr><td>{escape(item.stage)}</td><td class="num">{_total(item.seconds)}</td>'
            f'<td class="num">{item.epochs}</td><td class="num">{each} s</td><td class="num">{rate}</td>'
            f'<td class="num">{share}</td><td><span class="track">{bar}</span></td></tr>'
        )
    if not rows:
        return ""
    whole = run.metrics.get("images_per_second/epoch")
    finite = [value for value in whole[1] if math.isfinite(value)] if whole else []
    pace = f" A whole epoch makes and learns from {sum(finite) / len(finite):.1f} images a second." if finite else ""
    return (
        f'<h2>Time</h2><p class="lead">{_how_stages_meet(run)}{pace}</p>'
        '<div class="panel scroll"><table><tr><th>stage</th><th>total</th><th>times</th><th>each</th><th>images/s</th>'
        f"<th>share</th><th></th></tr>{''.join(rows)}</table></div>"
    )


def _how_stages_meet(run: RunData) -> str:
    cluster = run.config.get("cluster", {})
    if takes_turns(run):
        return "One process samples, scores and learns in turns."
    if cluster.get("kind") != "ray":
        return "The time of scoring is a part of the sample stage."
    ahead = " Sampling also goes on while the learner works." if cluster.get("max_staleness") else ""
    return f"Scoring goes on while sampling does; its time is summed over the reward actors.{ahead}"


def _shot(
    evaluation: Evaluation, key: tuple[int, int], text: str, value: float, before: float | None
) -> tuple[str, bool]:
    uri, width = data_uri(evaluation.image_path(*key))
    alike = before is None or score(value) == score(before)
    style = "" if before is None or alike else "up" if value > before else "down"
    pixels = ' class="pixels"' if width < _PIXELS else ""
    alt = escape(f"{text}, epoch {evaluation.epoch}, score {score(value)}", quote=True)
    return (
        f'<div class="shot"><img{pixels} src="{uri}" alt="{alt}"><span class="num {style}">{score(value)}</span></div>',
        width >= _PIXELS,
    )


def _total(seconds: float) -> str:
    return f"{seconds:.1f}s" if seconds < 10 else format_seconds(seconds)


def _box(title: str, note: str, curves: list[Series], aside: str = "") -> str:
    chart = curve_svg(curves, "" if len(curves) == 1 else " ", width=300, height=180)
    chart = chart.replace('aria-label=" "', f'aria-label="{escape(title, quote=True)}"')
    return (
        f'<figure class="panel chartbox"><div class="top"><h3>{escape(title)}</h3>'
        f'<span class="aside num">{aside}</span></div>'
        f"{f'<figcaption>{escape(note)}</figcaption>' if note else ''}{chart}</figure>"
    )


def _from_to(series: Series) -> str:
    values = [value for value in series.y if math.isfinite(value)]
    return f"{score(values[0])} \N{RIGHTWARDS ARROW} {score(values[-1])}" if len(values) > 1 else ""


def _skill_row(change: Change, kind: str = "") -> str:
    style = tone(change.sign, change.difference[0])
    cells = "".join(
        f'<td class="num">{score(value[0])} <span class="ci">{interval(value)}</span></td>'
        for value in (change.before, change.after)
    )
    chip = f'<span class="change num {style}">{signed(change.difference[0])}</span>'
    return (
        f'<tr class="{kind}"><td>{escape(label(change.name))}</td>{cells}'
        f'<td class="num">{chip} <span class="ci">{interval(change.difference, signed)}</span></td>'
        f"<td>{_dumbbell(change)}</td></tr>"
    )


def _dumbbell(change: Change) -> str:
    before, after = change.before[0], change.after[0]
    if math.isnan(before) or math.isnan(after) or not (0 <= before <= 1 and 0 <= after <= 1):
        return ""
    style = tone(change.sign, change.difference[0]) or "flat"
    a, b = 7 + 146 * before, 7 + 146 * after
    return (
        '<svg class="dumbbell" viewBox="0 0 160 14" aria-hidden="true">'
        '<line class="axis" x1="7" x2="153" y1="7" y2="7"/>'
        f'<line class="{style}" x1="{a:.1f}" x2="{b:.1f}" y1="7" y2="7"/>'
        f'<circle class="from" cx="{a:.1f}" cy="7" r="4"/><circle class="to {style}" cx="{b:.1f}" cy="7" r="5"/></svg>'
    )


def _single_skills(run: RunData) -> str:
    if not run.evaluations:
        return ""
    summary = run.evaluations[-1].summary()
    # Pairs: a category may be called as a sub-score is.
    named = [("score", summary["score"]), *summary["sub_scores"].items(), *summary["categories"].items()]
    rows = "".join(
        f'<tr class="{"" if place else "total"}"><td>{escape(label(name))}</td><td class="num">'
        f'{score(part["mean"])} <span class="ci">{interval((part["mean"], part["low"], part["high"]))}</span></td>'
        f'<td class="num">{part["images"]}</td></tr>'
        for place, (name, part) in enumerate(named)
    )
    return (
        '<h2>Skill by skill</h2><p class="lead">With 95% intervals.</p><div class="panel scroll"><table>'
        f"<tr><th>skill</th><th>score</th><th>images</th></tr>{rows}</table></div>"
    )
