"""The report's page: frame, headline, facts, configuration; its sections are in `report_sections`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

import prdp
from prdp.reports import report_sections as sections
from prdp.reports.report_data import Change, RunData, changes
from prdp.reports.report_style import STYLE
from prdp.reports.report_text import shown_as_zero, tone
from prdp.reports.templates import render
from prdp.tracking.console import format_seconds
from prdp.tracking.evaluations import common_images

# Nothing but inline styles and embedded pictures may load: the page is proof of being self-contained.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

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
    ("objective.kl", "weight of the distance to the start (kl)"),
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
    facts = [(name, value) for key, name in FACTS if (value := lookup(run.config, key)) is not None]
    body = [
        _header(run, title),
        _headline(run, overall),
        sections.warnings(run),
        render("facts.html", facts=facts) if facts else "",
        sections.pictures(run),
        sections.filmstrip(run),
        sections.sub_scores(run),
        sections.skills(run, overall, skills, categories),
        sections.statistics(run),
        sections.training(run),
        sections.timing(run),
        render("configuration.html", text=run.config_text) if run.config_text else "",
        render("footer.html", version=prdp.__version__),
    ]
    return document(title, body)


def document(title: str, body: Sequence[str], style: str = "") -> str:
    """A self-contained HTML document in the report's style.

    Args:
        title: of the window, as text.
        body: parts, as markup; empty ones go.
        style: is added to the report's.
    """
    parts = [Markup(part) for part in body if part]
    return str(render("document.html", title=title, body=parts, policy=Markup(_POLICY), style=Markup(STYLE + style)))


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
    return render(
        "header.html",
        title=title,
        state=state,
        sentence=sentence,
        name=run.run_dir.resolve().name,
        started=str(run.status.get("started", "")),
        worked=format_seconds(run.wall_seconds) if run.wall_seconds else "",
    )


def _headline(run: RunData, overall: Change | None) -> str:
    if not run.evaluations:
        return render("empty.html")
    first, last = run.evaluations[0], run.evaluations[-1]
    values: dict[str, Any] = {"overall": overall, "chart": sections.heldout_score(run)}
    if overall is not None:
        places, _ = common_images(first, last)
        values |= {
            "before": sections.when(first),
            "after": sections.when(last),
            "tone": tone(overall.sign, overall.difference[0]),
            "prompts": len(set(first.prompt_index[places].tolist())),
            "verdict": _verdict(overall),
        }
        return render("headline.html", **values)
    part = last.summary()["score"]
    values |= {
        "after": "before training" if last.epoch == 0 else sections.when(last),
        "only": (part["mean"], part["low"], part["high"]),
        "verdict": (
            "So far there is one evaluation; a second one will tell the difference."
            if len(run.evaluations) == 1
            else "The first and the last evaluation have no prompt in common, so they cannot be compared."
        ),
    }
    return render("headline.html", **values)


def _verdict(overall: Change) -> str:
    if any(map(math.isnan, overall.difference)):
        return "With a single prompt there is no interval."
    if shown_as_zero(overall.difference[0]):
        return "Rounded, the paired difference is zero."
    return {
        1: "The difference is paired, so its interval is narrower; it lies above zero.",
        -1: "The paired difference lies below zero: the model got worse.",
        0: "The interval of the paired difference contains zero: no change can be told from noise.",
    }[overall.sign]
