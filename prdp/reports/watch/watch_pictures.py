"""Held-out pictures at an epoch beside those from before, and the prompts that came out worst and best."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from prdp.reports.pictures import grid_scores, small_png
from prdp.reports.report_data import changes
from prdp.reports.report_sections import when
from prdp.reports.report_text import interval, label, score, signed, tone
from prdp.reports.watch.watched_run import WatchedRun, check_inside
from prdp.support.printable import printable_values
from prdp.tracking.evaluations import Evaluation

_IMAGES = 2
"""Of a prompt that are shown."""
_LISTED = 5


def evaluation_at(run: WatchedRun, epoch: int) -> Evaluation | None:
    """The newest one up to an epoch."""
    return next((item for item in reversed(run.evaluations.loaded) if item.epoch <= epoch), None)


def pictures(runs: Mapping[int, tuple[str, WatchedRun]], epoch: int) -> dict[str, Any]:
    """{"columns": [{"run", "name", "when", "epoch"}], "cards": [{"text", "rows": [[shot or None for each column]]}]}.

    The first column is the first run's first evaluation; then comes that of each run at the epoch. A shot is
    {"picture": its address on the page, "score", "tone", "alt"}.

    Args:
        runs: place -> (name, run).
        epoch: of each run its newest evaluation up to it is shown.
    """
    columns: list[tuple[int, str, WatchedRun, Evaluation]] = []
    for place, (name, run) in runs.items():
        item = evaluation_at(run, epoch)
        if not columns and run.evaluations.loaded and (item is None or item is not run.evaluations.loaded[0]):
            columns.append((place, name, run, run.evaluations.loaded[0]))
        if item is not None:
            columns.append((place, name, run, item))
    tables = [grid_scores(item) for _, _, _, item in columns]
    # Runs that are judged by other prompts get cards of their own.
    shown = {(*key, text) for table in tables for key, (text, _) in table.items() if key[1] < _IMAGES}
    cards: dict[tuple[int, str], dict[str, Any]] = {}
    for prompt, image, text in sorted(shown, key=lambda one: (one[0], one[2], one[1])):
        values = [table.get((prompt, image), ("", 0.0)) for table in tables]
        before = values[0][1] if values[0][0] == text else float("nan")
        shots: list[dict[str, str] | None] = []
        for (place, name, run, item), (own, value) in zip(columns, values, strict=True):
            if own != text:
                shots.append(None)
                continue
            alike = item is columns[0][3] or score(value) == score(before)
            shots.append(
                {
                    "picture": address(place, run, item, (prompt, image)),
                    "score": score(value),
                    "tone": "" if alike else "up" if value > before else "down" if value < before else "",
                    "alt": f"{text}; {name}, {when(item)}, score {score(value)}",
                }
            )
        cards.setdefault((prompt, text), {"text": text, "rows": []})["rows"].append(shots)
    heads = [{"run": place, "name": name, "when": when(item), "epoch": item.epoch} for place, name, _, item in columns]
    return dict(printable_values({"columns": heads, "cards": list(cards.values())}))


def prompts(place: int, run: WatchedRun, epoch: int) -> dict[str, Any]:
    """What an evaluation says of prompts and skills, beside the first one.

    {"epoch", "since", "lists": [{"title", "rows": [{"text", "picture", "before", "now", "difference", "tone"}]}],
    "skills": [{"name", "before", "after", "difference", "interval", "tone"}]}
    """
    item = evaluation_at(run, epoch)
    if item is None:
        return {"epoch": None, "since": None, "lists": [], "skills": []}
    first = run.evaluations.loaded[0]
    now = _means(item)
    before = _means(first) if first is not item else {}
    differences = {key: now[key] - before[key] for key in now if key in before}
    by_score = sorted((key for key in now if np.isfinite(now[key])), key=lambda key: now[key])
    by_change = sorted((key for key in differences if np.isfinite(differences[key])), key=lambda key: differences[key])
    shown = grid_scores(item)

    def row(key: tuple[int, str]) -> dict[str, Any]:
        index, text = key
        changed = differences.get(key, float("nan"))
        return {
            "text": text,
            "picture": address(place, run, item, (index, 0)) if (index, 0) in shown else None,
            "before": score(before.get(key, float("nan"))),
            "now": score(now[key]),
            "difference": signed(changed),
            "tone": tone(int(np.sign(changed)) if np.isfinite(changed) else 0, changed),
        }

    lists = {"Lowest scores": by_score[:_LISTED], "Highest scores": by_score[::-1][:_LISTED]}
    if by_change:
        lists |= {"Fell most": [key for key in by_change[:_LISTED] if differences[key] < 0]}
        lists |= {"Rose most": [key for key in by_change[::-1][:_LISTED] if differences[key] > 0]}
    skills = []
    if before:
        overall, parts, categories = changes(first, item)
        skills = [
            {
                "name": label(change.name),
                "before": score(change.before[0]),
                "after": score(change.after[0]),
                "difference": signed(change.difference[0]),
                "interval": interval(change.difference, signed),
                "tone": tone(change.sign, change.difference[0]),
            }
            for change in (*([overall] if overall else []), *parts, *categories)
        ]
    told = {
        "epoch": item.epoch,
        "since": first.epoch if before else None,
        "lists": [{"title": title, "rows": [row(key) for key in keys]} for title, keys in lists.items() if keys],
        "skills": skills,
    }
    return dict(printable_values(told))


def address(place: int, run: WatchedRun, item: Evaluation, key: tuple[int, int]) -> str:
    """Where the page finds a picture; another one once the evaluation is written anew."""
    return f"runs/{place}/pictures/{item.epoch}/{key[0]}/{key[1]}?v={run.evaluations.stamp(item.epoch)}"


def picture(run: WatchedRun, epoch: int, prompt: int, image: int) -> bytes:
    """A picture of an evaluation as PNG, scaled down where it is large.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no whole picture, or leads out of the run's folder.
    """
    item = next((item for item in run.evaluations.loaded if item.epoch == epoch), None)
    if item is None:
        raise FileNotFoundError(f"there is no evaluation of epoch {epoch}")
    path = item.image_path(prompt, image)
    check_inside(path, run.folder)
    if not path.is_file():
        raise FileNotFoundError(f"there is no picture of prompt {prompt}, image {image} at epoch {epoch}")
    return small_png(path)[0]


def _means(item: Evaluation) -> dict[tuple[int, str], float]:
    """(place, text) of a prompt -> mean score of its images."""
    sums: dict[tuple[int, str], list[float]] = {}
    for index, text, value in zip(item.prompt_index.tolist(), item.prompts, item.scores.tolist(), strict=True):
        sums.setdefault((index, text), []).append(value)
    return {key: sum(values) / len(values) for key, values in sums.items()}
