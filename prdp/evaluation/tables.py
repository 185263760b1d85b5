"""An evaluation in words and numbers: the printed table, Markdown, CSV and JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prdp.evaluation.models import EvaluatedModel
from prdp.evaluation.results import ALL, CATEGORY_MEAN, Cell, Results, Spread
from prdp.evaluation.samplers import sampler_of
from prdp.evaluation.spreadsheet import csv_text
from prdp.reports.report_text import MINUS, interval, score, signed
from prdp.support.printable import printable
from prdp.support.storage import write_atomically
from prdp.tracking.console import format_seconds
from prdp.tracking.strict_json import strict_json

RESULTS_FILE, TABLE_FILE, IMAGES_FILE, MARKDOWN_FILE = "results.json", "results.csv", "images.csv", "results.md"
_CATEGORY_COLUMNS = 6
"""Prompt sets with at most so many categories get a column for each, as in the paper's tables."""
DASH = "\N{EN DASH}"
STAR = "*"
PASSES = "passes"


def write_tables(results: Results) -> None:
    """Write results.json, results.csv, images.csv and results.md into the evaluation's folder."""
    folder = Path(results.work.config.output_dir)
    text = json.dumps(strict_json(as_json(results)), allow_nan=False, ensure_ascii=False, indent=1)
    write_atomically(folder / RESULTS_FILE, (text + "\n").encode())
    write_atomically(folder / TABLE_FILE, csv_text(list(_cell_rows(results))).encode())
    write_atomically(folder / IMAGES_FILE, csv_text(list(_image_rows(results))).encode())
    write_atomically(folder / MARKDOWN_FILE, markdown(results).encode())


def paper_table(results: Results) -> tuple[list[str], list[list[str]]]:
    """(header, rows) in the form of the paper's Tables 1 to 3: rewards and models down, prompt sets across.

    A set with a few categories brings a column for each. A star marks the reward that a model was trained on.
    """
    columns: list[tuple[str, str, str]] = []
    for prompt_set in results.work.prompts:
        columns.append((prompt_set, prompt_set, ALL))
        columns += [(part, prompt_set, part) for part in results.parts(prompt_set, CATEGORY_MEAN)]
        categories = results.parts(prompt_set, "category: ")
        if len(categories) <= _CATEGORY_COLUMNS:
            columns += [(part.removeprefix("category: "), prompt_set, part) for part in categories]
    rows = []
    for reward in results.rewards:
        for model in results.models:
            label = f"{reward} (watched)" if results.watched(reward) else reward
            cells = [results.cell(model.name, prompt_set, reward, part) for _, prompt_set, part in columns]
            star = STAR if results.trained_on(model, reward) else ""
            row = [label, f"{model.name}{star}", _passes(results, model.name, results.work.prompts)]
            rows.append([*row, *(DASH if cell is None else _mean(cell) for cell in cells)])
    return ["reward", "model", PASSES, *(label for label, _, _ in columns)], rows


def comparison_table(results: Results) -> tuple[list[str], list[list[str]]]:
    """(header, rows): each reward, prompt set and model with intervals, difference and win rate."""
    base = results.against
    header = ["reward", "prompts", "model", PASSES, "score", *([f"against {base}", "win rate"] if base else [])]
    rows = []
    sets = {
        (prompt_set, part): prompt_set if part == ALL else f"{prompt_set}, {part}"
        for prompt_set in results.work.prompts
        for part in (ALL, *results.parts(prompt_set, CATEGORY_MEAN))
    }
    for reward in results.rewards:
        for (prompt_set, part), called in sets.items():
            for model in results.models:
                cell = results.cell(model.name, prompt_set, reward, part)
                assert cell is not None
                passes = _passes(results, model.name, [prompt_set])
                row = [reward, called, model.name, passes, f"{_mean(cell)} {interval(cell.score)}".strip()]
                if base:
                    difference = f"{signed(cell.difference[0])} {interval(cell.difference, signed)}"
                    wins = f"{percent(cell.win_rate[0])} {percent_interval(cell)}"
                    row += [difference, wins] if model.name != base else [DASH, DASH]
                rows.append(row)
    return header, rows


def spread_table(results: Results) -> tuple[list[str], list[list[str]]]:
    """(header, rows): diversity and drift, steps and seconds of each prompt set and model."""
    measured = any(one.logratio_ref[0] == one.logratio_ref[0] for one in results.spreads)
    header = ["prompts", "model", "diversity", "of base", "drift"]
    header += ["logratio_ref"] if measured else []
    header += ["images", "steps", PASSES, "s/image", "scoring", "trained"]
    rows = []
    for one in results.spreads:
        images = results.images[one.model, one.prompts]
        model = next(model for model in results.models if model.name == one.model)
        row = [one.prompts, one.model, f"{score(one.diversity[0])} {interval(one.diversity)}".strip()]
        row += [percent(one.relative), score(one.drift[0])]
        ratio = one.logratio_ref[0]
        row += [DASH if ratio != ratio else f"{ratio:.2e}"] if measured else []
        steps = _steps(results, model)
        row += [str(len(images)), DASH if steps is None else str(steps)]
        row += [_passes(results, one.model, [one.prompts]), f"{images.sample_seconds / len(images):.3g}"]
        row += [format_seconds(sum(images.score_seconds.values())), trained(model)]
        rows.append(row)
    return header, rows


def _passes(results: Results, model: str, prompt_sets: Iterable[str]) -> str:
    """Passes of the network for an image, on average."""
    counted = np.concatenate([results.images[model, prompt_set].network_passes for prompt_set in prompt_sets])
    mean = float(counted.mean())
    return DASH if mean != mean else f"{mean:.4g}"


def _steps(results: Results, model: EvaluatedModel) -> int | None:
    """Of every image; None for cascades, whose images take different numbers."""
    return None if model.kind == "cascade" else sampler_of(results.work.config, model).steps


def trained(model: Any) -> str:
    """How long a model was trained, as far as its run tells."""
    if model.epoch is None:
        return DASH
    epochs = f"{model.epoch} epoch{'' if model.epoch == 1 else 's'}"
    whole = model.run is not None and model.run.epoch == model.epoch
    return f"{epochs}, {format_seconds(model.run.seconds)}" if whole else epochs


def alarms(results: Results) -> list[str]:
    """A sentence for every model whose diversity has collapsed."""
    limit = results.work.config.collapse_below
    return [
        f"collapse: on {one.prompts} the images of {one.model} differ from each other {percent(one.relative)} as much "
        f"as those of {results.against}, below collapse_below={limit:g}"
        for one in results.spreads
        if one.collapsed
    ]


def markdown(results: Results) -> str:
    """The tables as a Markdown document."""
    parts = ["# Evaluation\n", *[f"- {printable(note)}\n" for note in results.notes]]
    parts += [f"\n> **{printable(alarm)}**\n" for alarm in alarms(results)]
    for title, (header, rows) in (
        ("Mean scores", paper_table(results)),
        ("Intervals, differences and win rates", comparison_table(results)),
        ("Diversity, drift and time", spread_table(results)),
    ):
        parts.append(f"\n## {title}\n\n{_markdown_row(header)}|{'---|' * len(header)}\n")
        parts += map(_markdown_row, rows)
    return "".join(parts) + f"\n{legend(results)}\n"


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(printable(cell).replace('|', chr(92) + '|') for cell in cells)} |\n"


def legend(results: Results) -> str:
    """What the columns mean, in a few words."""
    confidence = f"{results.work.config.confidence:.0%}"
    single = [name for name, prompts in results.work.prompts.items() if len(prompts) == 1]
    alone = f" One prompt gives no interval: {', '.join(single)}." if single else ""
    return (
        f"Brackets are {confidence} intervals over prompts, Student's of means and Wilson's of win rates.{alone} "
        f"{STAR} marks the reward that a model was trained on. Differences and win rates pair images of the same "
        "prompt and noise; a tie is half a win. Diversity is the mean distance of a prompt's images from each other, "
        f"drift that from the base's image, in {results.features}. Passes are those of the network for an image; "
        "guidance takes two a step."
    )


def print_results(results: Results) -> None:
    """Print the tables, the alarms and where the files are."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        # Pipes and logs have no width to fold a table for.
        console = Console(width=1000)
    _print(console, "Mean scores", paper_table(results))
    _print(console, "", comparison_table(results))
    _print(console, "", spread_table(results))
    console.print(printable(legend(results)), style="dim", markup=False, highlight=False)
    for alarm in alarms(results):
        console.print(printable(alarm), style="bold red", markup=False, highlight=False)


def as_json(results: Results) -> dict[str, Any]:
    """Everything as plain values."""
    config = results.work.config
    return {
        "against": results.against,
        "notes": list(results.notes),
        "alarms": alarms(results),
        "seeds": list(config.seeds),
        "images_per_prompt": config.images_per_prompt,
        "confidence": config.confidence,
        "features": results.features,
        "prompts": {name: len(batch) for name, batch in results.work.prompts.items()},
        "rewards": {
            name: {**identity, "watched": results.watched(name)} for name, identity in results.identities.items()
        },
        "models": [
            {
                "name": model.name,
                "source": model.source,
                "base": model.model.path,
                "trained_on": [name for name in results.rewards if results.trained_on(model, name)],
                "epochs": model.epoch,
                "training_seconds": model.run.seconds if model.run is not None else None,
            }
            for model in results.models
        ],
        "scores": [_cell_json(cell) for cell in results.cells],
        "spread": [_spread_json(results, one) for one in results.spreads],
        "routed": [_plain(one) for one in results.routed],
        "wins": [_plain(one) for one in results.wins],
    }


def _cell_json(cell: Cell) -> dict[str, Any]:
    row: dict[str, Any] = {"reward": cell.reward, "prompts": cell.prompts, "part": cell.part, "model": cell.model}
    row |= _named("score", cell.score) | _named("difference", cell.difference) | _named("win_rate", cell.win_rate)
    return {**row, "images": cell.images}


def _spread_json(results: Results, one: Spread) -> dict[str, Any]:
    images = results.images[one.model, one.prompts]
    model = next(model for model in results.models if model.name == one.model)
    row: dict[str, Any] = {"prompts": one.prompts, "model": one.model, **_named("diversity", one.diversity)}
    row |= {"diversity_of_base": one.relative, **_named("drift", one.drift), **_named("logratio_ref", one.logratio_ref)}
    return {
        **row,
        "collapsed": one.collapsed,
        "images": len(images),
        "steps": _steps(results, model),
        "network_passes": float(images.network_passes.mean()),
        "sample_seconds": images.sample_seconds,
        "score_seconds": dict(images.score_seconds),
    }


def _plain(one: Any) -> dict[str, Any]:
    """The fields of a dataclass, intervals as three values."""
    row: dict[str, Any] = {}
    for field in dataclasses.fields(one):
        value = getattr(one, field.name)
        row |= _named(field.name, value) if isinstance(value, tuple) else {field.name: value}
    return row


def _named(name: str, value: tuple[float, float, float]) -> dict[str, float]:
    return {name: value[0], f"{name}_low": value[1], f"{name}_high": value[2]}


def _cell_rows(results: Results) -> Iterator[dict[str, Any]]:
    """Like the JSON's scores, with the spread of the model on the set beside each."""
    spreads = {(one.model, one.prompts): _spread_json(results, one) for one in results.spreads}
    for cell in results.cells:
        spread = spreads[cell.model, cell.prompts]
        beside = (
            "diversity", "diversity_of_base", "drift", "logratio_ref", "collapsed", "steps", "network_passes",
            "sample_seconds",
        )  # fmt: skip
        yield {**_cell_json(cell), **{key: spread[key] for key in beside}}


def _image_rows(results: Results) -> Iterator[dict[str, Any]]:
    """A row for every image: where it lies, and its scores."""
    folder = Path(results.work.config.output_dir)
    for (model, prompt_set), images in results.images.items():
        paths = (
            chunk.folder / name
            for seed in results.work.config.seeds
            for chunk in results.work.chunks[model, prompt_set, seed]
            for name in chunk.names()
        )
        batch = results.work.prompts[prompt_set]
        for i, path in enumerate(paths):
            prompt = int(images.prompt[i])
            yield {
                "model": model,
                "prompts": prompt_set,
                "seed": int(images.seed[i]),
                "prompt_index": prompt,
                "image": int(images.image[i]),
                "prompt": batch.texts[prompt],
                "category": batch.metadata[prompt].get("category", ""),
                **{reward: float(values[i]) for reward, values in images.scores.items()},
                "file": path.relative_to(folder).as_posix(),
            }


def _print(console: Any, title: str, table: tuple[Sequence[str], Sequence[Sequence[str]]]) -> None:
    from rich.table import Table
    from rich.text import Text

    header, rows = table
    shown = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
    words = {"reward", "model", "prompts"}
    for name in header:
        # As `Text`, nothing in a name is taken for markup.
        label, left = Text(printable(name)), name in words
        shown.add_column(label, justify="left" if left else "right", overflow="fold", no_wrap=not left)
    before: Sequence[str] = ()
    for row in rows:
        # A repeated first word is left blank, as in the paper's tables.
        first = "" if before and before[0] == row[0] else row[0]
        if before and first:
            shown.add_section()
        shown.add_row(*(Text(printable(cell)) for cell in (first, *row[1:])))
        before = row
    console.print(shown)
    console.print()


def _mean(cell: Cell) -> str:
    """With four decimals, as the paper prints cosines; large scores with fewer."""
    value = cell.score[0]
    return f"{value:z.4f}".replace("-", MINUS) if abs(value) < 10 else score(value)


def percent(value: float) -> str:
    """'53%', a dash for NaN."""
    return DASH if value != value else f"{value:z.0%}"


def percent_interval(cell: Cell) -> str:
    """'[40%, 60%]' of a win rate, empty where it is NaN."""
    _, low, high = cell.win_rate
    return "" if low != low else f"[{low:.0%}, {high:.0%}]"
