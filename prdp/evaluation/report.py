"""`report.html` of an evaluation: one self-contained page, made from its results."""

from __future__ import annotations

from html import escape
from pathlib import Path

import prdp
from prdp.evaluation import report_pictures as pictures
from prdp.evaluation.report_dots import dots_svg
from prdp.evaluation.report_passes import passes_section, wins_section
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
from prdp.reports.report_text import interval, label, score, signed, tone
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
        *(f'<div class="panel alarm"><b>Alarm:</b> {escape(alarm)}.</div>' for alarm in alarms(results)),
        _facts(results),
        _notes(results),
        _paper_table(results),
        _side_by_side(results),
        passes_section(results),
        *(_comparison(results, reward) for reward in results.rewards),
        wins_section(results),
        _spread(results),
        pictures.grid(results),
        pictures.best_and_worst(results),
        _models(results),
        f"<footer>Made by prdp {escape(prdp.__version__)}. {escape(legend(results))}</footer>",
    ]
    return document(title, body, _STYLE)


def _header(results: Results, title: str) -> str:
    images = sum(map(len, results.images.values()))
    parts = [f"{len(results.models)} models", f"{images} images", f"{len(results.rewards)} rewards"]
    spans = "".join(f"<span>{part}</span>" for part in parts)
    return f'<header><h1>{escape(title)}</h1><div class="line">{spans}</div></header>'


def _facts(results: Results) -> str:
    config = results.work.config
    samplers = [sampler_of(config, model) for model in results.models]
    sets = ", ".join(f"{name} ({len(batch)})" for name, batch in results.work.prompts.items())
    facts = {
        "prompts": sets,
        "images per prompt": config.images_per_prompt,
        "seeds": ", ".join(map(str, config.seeds)),
        "sampling steps": ", ".join(dict.fromkeys(str(one.steps) for one in samplers)),
        "guidance": ", ".join(dict.fromkeys(f"{one.guidance_scale:g}" for one in samplers)),
        "sampler": ", ".join(dict.fromkeys(one.kind for one in samplers)),
        "compared with": results.against or DASH,
        "features": results.features,
    }
    items = "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(str(value))}</dd></div>" for key, value in facts.items())
    return f'<dl class="facts">{items}</dl>'


def _notes(results: Results) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in results.notes)
    return f'<ul class="notes">{items}</ul>' if items else ""


def _paper_table(results: Results) -> str:
    header, rows = paper_table(results)
    best: dict[tuple[str, int], float] = {}
    for row in rows:
        for column, cell in enumerate(row[3:], start=3):
            if (value := _number(cell)) is not None:
                best[row[0], column] = max(value, best.get((row[0], column), value))
    lines = []
    before = ""
    for row in rows:
        cells = []
        for column, cell in enumerate(row[2:], start=2):
            value = _number(cell)
            kind = " best" if value is not None and value == best.get((row[0], column)) else ""
            cells.append(f'<td class="num{kind}">{escape(cell)}</td>')
        if row[0] != before:
            lines.append(f'<tr class="section"><td colspan="{len(header) - 1}">{escape(row[0])}</td></tr>')
        before = row[0]
        lines.append(f"<tr><td>{escape(row[1])}</td>{''.join(cells)}</tr>")
    heads = "".join(f"<th>{escape(name)}</th>" for name in header[1:])
    return (
        f'<h2>Mean scores</h2><p class="lead">The highest of each column is bold. {STAR} marks the reward that a model '
        f'was trained on.</p><div class="panel scroll"><table><tr>{heads}</tr>{"".join(lines)}</table></div>'
    )


def _number(cell: str) -> float | None:
    try:
        return float(cell.replace("\N{MINUS SIGN}", "-"))
    except ValueError:
        return None


def _side_by_side(results: Results) -> str:
    """All rewards on one scale, the optimised and the watched: what a model gains here, does it lose there?"""
    if results.against is None or len(results.models) < 2:
        return ""
    charts = []
    for prompt_set in results.work.prompts:
        chart = dots_svg(results, prompt_set)
        if chart:
            title = f"<h3>{escape(prompt_set)}</h3>" if len(results.work.prompts) > 1 else ""
            charts.append(f'{title}<div class="panel strip">{chart}</div>')
    if not charts:
        return ""
    base = escape(results.against)
    return (
        f'<h2>Rewards beside each other</h2><p class="lead">Paired difference from {base} in standard deviations of '
        f"{base}'s images, so that rewards of any scale can be read together. A full dot is what a model was trained "
        "on, a hollow one is not. A model that gains on the one and loses on the others has learned to please the "
        f"scorer.</p>{''.join(charts)}"
    )


def _comparison(results: Results, reward: str) -> str:
    """One reward: every prompt set and model, with categories and sub-scores folded away."""
    watched = ", watched only" if results.watched(reward) else ""
    version = results.identities[reward].get("version", "")
    tables = []
    for prompt_set in results.work.prompts:
        title = f"<h3>{escape(prompt_set)}</h3>" if len(results.work.prompts) > 1 else ""
        tables.append(f"{title}{_cells_table(results, reward, prompt_set)}")
    return (
        f'<h2>{escape(label(reward))}</h2><p class="lead">Version {escape(str(version))}{watched}. A difference is '
        f"coloured when its interval leaves out zero.</p>{''.join(tables)}"
    )


def _cells_table(results: Results, reward: str, prompt_set: str) -> str:
    head = "<tr><th>model</th><th>score</th>"
    head += f"<th>against {escape(results.against)}</th><th>win rate</th>" if results.against else ""
    main = [results.cell(model.name, prompt_set, reward, ALL) for model in results.models]
    kinds = (CATEGORY_MEAN, "category: ", "sub-score: ")
    parts = [part for kind in kinds for part in results.parts(prompt_set, kind)]
    more = []
    for part in parts:
        cells = [results.cell(model.name, prompt_set, reward, part) for model in results.models]
        if any(cell is not None for cell in cells):
            more.append(f'<tr class="section"><td colspan="4">{escape(part)}</td></tr>')
            more += [_cell_row(results, cell) for cell in cells if cell is not None]
    folded = (
        '<details class="panel" style="margin-top:12px"><summary>By category and sub-score</summary>'
        f'<div class="scroll"><table>{head}</tr>{"".join(more)}</table></div></details>'
        if more
        else ""
    )
    rows = "".join(_cell_row(results, cell) for cell in main if cell is not None)
    return f'<div class="panel scroll"><table>{head}</tr>{rows}</table></div>{folded}'


def _cell_row(results: Results, cell: Cell) -> str:
    base = cell.model == results.against
    style = tone(cell.sign, cell.difference[0])
    change = (
        f"<td>{DASH}</td><td>{DASH}</td>"
        if base
        else f'<td class="num"><span class="change num {style}">{signed(cell.difference[0])}</span> '
        f'<span class="ci">{interval(cell.difference, signed)}</span></td>'
        f'<td class="num">{percent(cell.win_rate[0])} <span class="ci">{percent_interval(cell)}</span></td>'
    )
    return (
        f'<tr{" class=total" if base else ""}><td>{escape(cell.model)}</td><td class="num">{score(cell.score[0])} '
        f'<span class="ci">{interval(cell.score)}</span></td>{change if results.against else ""}</tr>'
    )


def _spread(results: Results) -> str:
    header, rows = spread_table(results)
    collapsed = {(one.prompts, one.model) for one in results.spreads if one.collapsed}
    lines = []
    for row in rows:
        tone = " down" if (row[0], row[1]) in collapsed else ""
        tones = ("", tone, *[""] * len(row))
        cells = "".join(f'<td class="num{tones[i]}">{escape(cell)}</td>' for i, cell in enumerate(row[2:]))
        lines.append(f'<tr><td>{escape(row[0])}</td><td class="text">{escape(row[1])}</td>{cells}</tr>')
    heads = "".join(f"<th{' class=text' if name == 'model' else ''}>{escape(name)}</th>" for name in header)
    return (
        '<h2>Diversity, drift and time</h2><p class="lead">Diversity: mean distance of a prompt\'s images from each '
        "other; a model that shows the same picture whatever the noise has none. Drift: mean distance from the image "
        f"that {escape(results.against or 'the base')} makes of the same noise. Both in {escape(results.features)}.</p>"
        f'<div class="panel scroll"><table><tr>{heads}</tr>{"".join(lines)}</table></div>'
    )


def _models(results: Results) -> str:
    rows = "".join(
        f'<tr><td>{escape(model.name)}</td><td class="text">{escape(model.kind)}</td>'
        f'<td class="text">{escape(model.source)}</td><td class="text">{escape(model.model.path)}</td>'
        f"<td>{escape(trained(model))}</td></tr>"
        for model in results.models
    )
    return (
        '<h2>Models</h2><div class="panel scroll"><table><tr><th>name</th><th class=text>kind</th>'
        f"<th class=text>weights</th><th class=text>base</th><th>trained</th></tr>{rows}</table></div>"
    )
