"""The report's page: frame, headline, facts, configuration; its sections are in `report_sections`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import prdp
from prdp.reports import report_sections as sections
from prdp.reports.report_data import Change, Interval, RunData, changes
from prdp.reports.report_style import STYLE
from prdp.reports.report_text import interval, score, shown_as_zero, signed, tone
from prdp.tracking.console import format_seconds

# Nothing but inline styles and embedded pictures may load: the page is proof of being self-contained.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

_HINT = "This page loads nothing from elsewhere. Hover over a chart to read its values."

FACTS = (
    ("model.path", "model"),
    ("learner.mode", "weights"),
    ("learner.learning_rate", "learning rate"),
    ("prompts_per_epoch", "prompts per epoch (N)"),
    ("images_per_prompt", "images per prompt (B)"),
    ("updates_per_epoch", "updates per epoch (K)"),
    ("sampler.steps", "sampling steps (T)"),
    ("sampler.guidance_scale", "guidance"),
    ("sampler.negative_prompt", "negative prompt"),
    ("objective.name", "objective"),
    ("objective.evidence", "evidence"),
    ("objective.beta", "beta"),
    ("objective.clip_range", "clip range"),
    ("cluster.kind", "cluster"),
    ("seed", "seed"),
)
"""Keys of the configuration that are told of first, and what they are called."""


def page(run: RunData) -> str:
    """The whole HTML document."""
    first, last = (run.evaluations[0], run.evaluations[-1]) if run.evaluations else (None, None)
    overall: Change | None = None
    skills: list[Change] = []
    categories: list[Change] = []
    if first is not None and last is not None and first is not last:
        overall, skills, categories = changes(first, last)
    title = _title(run)
    body = [
        _header(run, title),
        _headline(run, overall),
        sections.warnings(run),
        _facts(run),
        sections.pictures(run),
        sections.filmstrip(run),
        sections.sub_scores(run),
        sections.skills(run, overall, skills, categories),
        sections.statistics(run),
        sections.training(run),
        sections.timing(run),
        _configuration(run),
        f"<footer>Made by prdp {escape(prdp.__version__)} from the run folder alone. {_HINT}</footer>",
    ]
    return document(title, body)


def document(title: str, body: Sequence[str], style: str = "") -> str:
    """A self-contained HTML document in the report's style; `style` is added to it, empty parts of the body go."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><link rel="icon" href="data:,"><style>{STYLE}{style}</style></head>\n'
        f"<body><main>\n{chr(10).join(part for part in body if part)}\n</main></body></html>\n"
    )


def lookup(config: Mapping[str, Any], dotted: str) -> Any:
    """The value at a dotted key, None when it is not there."""
    value: Any = config
    for key in dotted.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return None
        value = value[key]
    return value


def _title(run: RunData) -> str:
    model = lookup(run.config, "model.path")
    reward = lookup(run.config, "reward.path") or lookup(run.config, "reward._target_")
    if not model or not reward:
        return f"Run {run.run_dir.resolve().name}"
    return f"{str(model).rstrip('/').rsplit('/', 1)[-1]} fine-tuned on {str(reward).rsplit('.', 1)[-1]}"


def _header(run: RunData, title: str) -> str:
    state, sentence = run.state
    parts = [
        f'<span class="badge {state}">{escape(sentence)}</span>',
        f"<span>{escape(run.run_dir.resolve().name)}</span>",
    ]
    started = str(run.status.get("started", ""))
    if started:
        parts.append(f"<span>{escape(started[:16].replace('T', ' '))} UTC</span>")
    if run.wall_seconds:
        parts.append(f"<span>wall time {format_seconds(run.wall_seconds)}</span>")
    return f'<header><h1>{escape(title)}</h1><div class="line">{"".join(parts)}</div></header>'


def _headline(run: RunData, overall: Change | None) -> str:
    if overall is not None:
        first, last = run.evaluations[0], run.evaluations[-1]
        prompts = len(set(first.prompt_index.tolist()) & set(last.prompt_index.tolist()))
        style = tone(overall.sign, overall.difference[0])
        verdict = {
            1: "The difference is paired, so its interval is narrower; it lies above zero.",
            -1: "The paired difference lies below zero: the model got worse.",
            0: "The interval of the paired difference contains zero: no change can be told from noise.",
        }[overall.sign]
        if shown_as_zero(overall.difference[0]):
            verdict = "Rounded, the paired difference is zero."
        if any(map(math.isnan, overall.difference)):
            verdict = "With a single prompt there is no interval."
        return (
            '<section class="panel headline"><div><div class="pair">'
            f"{_number(f'Held-out score {sections.when(first)}', overall.before)}"
            '<div class="arrow" aria-hidden="true">\N{RIGHTWARDS ARROW}</div>'
            f"{_number(sections.when(last), overall.after)}"
            f"{_number('paired difference', overall.difference, style, signed)}</div>"
            f'<p class="note">Mean score of {overall.images} images of {prompts} prompts that were never trained on, '
            "the same prompts and the same noise both times. Brackets are 95% t intervals over "
            f"prompts. {verdict}</p></div>{sections.heldout_score(run)}</section>"
        )
    if run.evaluations:
        only = run.evaluations[-1]
        part = only.summary()["score"]
        when = "before training" if only.epoch == 0 else f"after {only.epoch} epochs"
        note = (
            "So far there is one evaluation; a second one will tell the difference."
            if len(run.evaluations) == 1
            else "The first and the last evaluation have no prompt in common, so they cannot be compared."
        )
        numbers = _number(f"Held-out score {when}", (part["mean"], part["low"], part["high"]))
        chart = sections.heldout_score(run)
        return f'<section class="panel headline"><div>{numbers}<p class="note">{note}</p></div>{chart}</section>'
    return '<section class="panel empty" style="margin-top:26px">No evaluation has been saved yet.</section>'


def _number(label: str, value: Interval, colour: str = "", style: Any = score) -> str:
    return (
        f'<div><div class="label">{escape(label)}</div><div class="big num {colour}">{style(value[0])}</div>'
        f'<div class="ci num">{interval(value, style)}</div></div>'
    )


def _facts(run: RunData) -> str:
    found = [(label, lookup(run.config, key)) for key, label in FACTS]
    items = [f"<div><dt>{escape(label)}</dt><dd>{escape(str(v))}</dd></div>" for label, v in found if v is not None]
    return f'<dl class="facts">{"".join(items)}</dl>' if items else ""


def _configuration(run: RunData) -> str:
    if not run.config_text:
        return ""
    return (
        '<h2>Configuration</h2><p class="lead">Composed, as it was run and saved in config.yaml.</p>'
        f'<details class="panel"><summary>Show all keys</summary><pre>{escape(run.config_text)}</pre></details>'
    )
