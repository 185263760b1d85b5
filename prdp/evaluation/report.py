"""`report.html` of an evaluation: one self-contained page, made from its results."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from markupsafe import Markup

import prdp
from prdp.evaluation import report_pictures as pictures
from prdp.evaluation.report_dots import dots_svg
from prdp.evaluation.report_passes import passes_section, wins_section
from prdp.evaluation.report_pictures import set_title
from prdp.evaluation.results import ALL, CATEGORY_MEAN, Cell, Results
from prdp.evaluation.samplers import sampler_of
from prdp.evaluation.tables import (
    DASH,
    STAR,
    alarms,
    legend,
    paper_table,
    percent,
    percent_interval,
    spread_table,
    trained,
)
from prdp.reports.report_html import document
from prdp.reports.report_text import tone
from prdp.reports.templates import render
from prdp.support.storage import write_atomically

REPORT_FILE = "report.html"
_STYLE = """
.alarm{border-color:var(--down);border-width:2px;padding:16px 20px;margin-top:22px}.alarm b{color:var(--down)}
.notes{color:var(--muted);font-size:14px;margin:14px 0 0;padding-left:20px}
td.best{font-weight:650}
.cards.wide{grid-template-columns:minmax(0,1fr)}
.row{display:grid;gap:8px;grid-template-columns:repeat(auto-fit,minmax(60px,1fr));align-items:end;margin-top:auto}
.cards.wide .row{grid-template-columns:repeat(auto-fill,minmax(110px,160px))}
.cards.wide.large .row{grid-template-columns:repeat(auto-fill,minmax(150px,240px))}
.row .head{font-size:12px;color:var(--muted);overflow-wrap:anywhere;margin-bottom:3px}
th.text,td.text{text-align:left}
.dots{max-width:760px}
.dots text{fill:var(--ink);font-size:12px}.dots .axis text,.dots text.axis{fill:var(--muted);font-size:11px}
.dots .zero{stroke:var(--muted);stroke-dasharray:3 3}.dots .whisker{stroke-width:2}
.dots .watched{stroke-dasharray:2 2}.dots .hollow{fill:var(--paper);stroke-width:2}
.dots .s0{stroke:var(--s0)}.dots .s1{stroke:var(--s1)}.dots .s2{stroke:var(--s2)}.dots .s3{stroke:var(--s3)}
.dots .p0{fill:var(--s0)}.dots .p1{fill:var(--s1)}.dots .p2{fill:var(--s2)}.dots .p3{fill:var(--s3)}
h3{margin:22px 0 10px}
"""


def write_report(results: Results) -> Path:
    """Write report.html into the evaluation's folder; returns its path.

    Raises:
        prdp.support.storage.StorageError: the report cannot be written.
    """
    path = Path(results.work.config.output_dir) / REPORT_FILE
    write_atomically(path, page(results).encode())
    return path


def page(results: Results) -> str:
    """The whole HTML document."""
    title = f"Evaluation of {', '.join(model.name for model in results.models if model.name != results.against)}"
    if len(title) > 90:
        title = f"Evaluation of {len(results.models)} models"
    body = [
        _header(results, title),
        _facts(results),
        render("evaluation/notes.html", notes=results.notes) if results.notes else "",
        _mean_scores(results),
        _side_by_side(results),
        passes_section(results),
        *(_reward(results, reward) for reward in results.rewards),
        wins_section(results),
        _spread(results),
        pictures.grid(results),
        pictures.best_and_worst(results),
        render("evaluation/models.html", models=[(model, trained(model)) for model in results.models]),
        render("evaluation/footer.html", version=prdp.__version__, legend=legend(results)),
    ]
    return document(title, body, _STYLE)


def _header(results: Results, title: str) -> str:
    images = sum(map(len, results.images.values()))
    parts = [f"{len(results.models)} models", f"{images} images", f"{len(results.rewards)} rewards"]
    return render("evaluation/header.html", title=title, parts=parts, alarms=alarms(results))


def _facts(results: Results) -> str:
    config = results.work.config
    samplers = [sampler_of(config, model) for model in results.models]
    facts = {
        "prompts": ", ".join(f"{name} ({len(batch)})" for name, batch in results.work.prompts.items()),
        "images per prompt": config.images_per_prompt,
        "seeds": ", ".join(map(str, config.seeds)),
        "sampling steps": ", ".join(dict.fromkeys(str(one.steps) for one in samplers)),
        "guidance": ", ".join(dict.fromkeys(f"{one.guidance_scale:g}" for one in samplers)),
        "sampler": ", ".join(dict.fromkeys(one.kind for one in samplers)),
        "compared with": results.against or DASH,
        "features": results.features,
    }
    return render("facts.html", facts=facts.items())


def _mean_scores(results: Results) -> str:
    header, rows = paper_table(results)
    best: dict[tuple[str, int], float] = {}
    for row in rows:
        for column, cell in enumerate(row[3:], start=3):
            if (value := _number(cell)) is not None:
                best[row[0], column] = max(value, best.get((row[0], column), value))
    groups = []
    for reward, of_reward in itertools.groupby(rows, key=lambda row: row[0]):
        told = []
        for row in of_reward:
            values = [(cell, _number(cell), best.get((reward, at))) for at, cell in enumerate(row[2:], start=2)]
            told.append((row[1], [(cell, value is not None and value == most) for cell, value, most in values]))
        groups.append((reward, told))
    return render("evaluation/mean_scores.html", heads=header[1:], groups=groups, star=STAR)


def _number(cell: str) -> float | None:
    try:
        return float(cell.replace("\N{MINUS SIGN}", "-"))
    except ValueError:
        return None


def _side_by_side(results: Results) -> str:
    """All rewards on one scale, the optimised and the watched: what a model gains here, does it lose there?"""
    if results.against is None or len(results.models) < 2:
        return ""
    charts = [(set_title(results, name), Markup(dots_svg(results, name))) for name in results.work.prompts]
    charts = [(title, chart) for title, chart in charts if chart]
    return render("evaluation/side_by_side.html", base=results.against, charts=charts) if charts else ""


def _reward(results: Results, reward: str) -> str:
    """One reward: every prompt set and model, with categories and sub-scores folded away."""
    return render(
        "evaluation/reward.html",
        reward=reward,
        version=results.identities[reward].get("version", ""),
        watched=results.watched(reward),
        against=results.against,
        dash=DASH,
        tables=[_cells(results, reward, prompt_set) for prompt_set in results.work.prompts],
    )


def _cells(results: Results, reward: str, prompt_set: str) -> dict[str, Any]:
    def rows(part: str) -> list[dict[str, Any]]:
        cells = [results.cell(model.name, prompt_set, reward, part) for model in results.models]
        return [_cell(results, cell) for cell in cells if cell is not None]

    kinds = (CATEGORY_MEAN, "category: ", "sub-score: ")
    parts = [(part, rows(part)) for kind in kinds for part in results.parts(prompt_set, kind)]
    shown = [(part, found) for part, found in parts if found]
    return {"title": set_title(results, prompt_set), "rows": rows(ALL), "parts": shown}


def _cell(results: Results, cell: Cell) -> dict[str, Any]:
    return {
        "cell": cell,
        "is_base": cell.model == results.against,
        "style": tone(cell.sign, cell.difference[0]),
        "win_rate": percent(cell.win_rate[0]),
        "win_interval": percent_interval(cell),
    }


def _spread(results: Results) -> str:
    header, rows = spread_table(results)
    collapsed = {(one.prompts, one.model) for one in results.spreads if one.collapsed}
    told = []
    for row in rows:
        fell = "down" if (row[0], row[1]) in collapsed else ""
        told.append((row[0], row[1], [(cell, fell if at == 1 else "") for at, cell in enumerate(row[2:])]))
    against = results.against or "the base"
    return render("evaluation/spread.html", heads=header, rows=told, against=against, features=results.features)
