"""`prdp status <run folder>`: how a job stands, from the `status.json` that it keeps."""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from prdp.commands.supervise import last_words
from prdp.support.errors import StartError
from prdp.support.printable import printable, printable_values
from prdp.tracking.console import format_seconds
from prdp.tracking.status_file import STATUS_FILE, is_alive, load_status, seconds_since
from prdp.tracking.strict_json import strict_json

_ACTOR_COLUMNS = ("name", "kind", "node", "pid", "state", "restarts", "chunks", "at work")
_STUCK_SECONDS = 60.0
_STAGES = ("sample", "score", "learn", "epoch")


def main(arguments: Sequence[str]) -> int:
    """Print how the jobs in some folders stand."""
    parser = argparse.ArgumentParser(
        prog="prdp status",
        description="How jobs stand: epoch, rates, rewards, actors and the last fault, from their run folders.",
        epilog="One run folder is told in full; several, or the folder of a sweep, in a line each.",
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a run's folder, or a sweep's")
    parser.add_argument("--json", action="store_true", help="print the status as JSON, a list where there are several")
    options = parser.parse_args(arguments)
    folders, sweep = _runs_in(options.folders)
    now = time.time()
    statuses, problems = [], []
    for folder in folders:
        try:
            status = load_status(folder)
        except (OSError, ValueError) as error:
            problems.append(str(error))
        else:
            statuses.append({**status, "folder": str(folder), "alive": is_alive(status, now)})
    alone = len(folders) == 1 and not sweep
    if options.json and statuses:
        print(json.dumps(strict_json(statuses[0] if alone else statuses), indent=2, allow_nan=False))
    elif alone and statuses:
        print(told(statuses[0], now))
    elif statuses:
        print(table([_line(status, now) for status in statuses], _LINE_COLUMNS))
    if problems:
        raise StartError("\n".join(problems))
    return 0


def told(status: Mapping[str, Any], now: float) -> str:
    """A status in full: a heading, a line about each matter, a table of the actors and the last fault.

    Args:
        status: of `load_status`, with "folder" and "alive".
        now: seconds since 1970.
    """
    supervised = last_words(Path(status["folder"]))
    status = printable_values(status)
    metrics = _mapping(status, "metrics")
    lines = [f"{status['folder']}: {_state(status)}, {_epochs(status, now)}"]
    facts = {
        "run": f"{status.get('run_id') or '?'}, started {_clock(status.get('started'))}",
        "process": _process(status, now),
        "now": _stages(status, now),
        "silent": "; ".join(_silent(status, now)),
        "pace": _pace(status, metrics),
        "reward": _rewards(status, metrics),
        "supervisor": printable(supervised),
    }
    lines += [f"  {name:<10} {text}" for name, text in facts.items() if text]
    if actors := _actors(status):
        rows = [_actor_row(actor, status["alive"], now) for actor in actors]
        lines += ["", *("  " + row for row in table(rows, _ACTOR_COLUMNS).splitlines())]
    if fault := _fault(status, now):
        lines += ["", f"  last fault: {fault}"]
    return "\n".join(lines)


def table(rows: Sequence[Sequence[str]], columns: Sequence[str]) -> str:
    """Rows of text under a heading, in columns as wide as they need."""
    widths = [max(len(row[i]) for row in (columns, *rows)) for i in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (columns, *rows)
    )


_LINE_COLUMNS = ("folder", "state", "epoch", "left", "reward", "held-out", "last fault")


def _line(status: Mapping[str, Any], now: float) -> list[str]:
    status = printable_values(status)
    metrics, progress = _mapping(status, "metrics"), _mapping(status, "progress")
    return [
        str(status["folder"]),
        _state(status),
        f"{status.get('epoch', '?')}/{progress.get('epochs', '?')}",
        format_seconds(_seconds_left(status, now)),
        _shown(metrics.get("reward/mean")),
        _shown(metrics.get("eval/score")),
        _fault(status, now) or "-",
    ]


def _runs_in(named: Sequence[Path]) -> tuple[list[Path], bool]:
    """The run folders, those of sweeps in their order; and whether a sweep is among them.

    Raises:
        StartError: a folder that is not there, or holds no run.
    """
    found: list[Path] = []
    sweep = False
    for folder in named:
        if not folder.is_dir():
            raise StartError(f"there is no folder {folder}")
        if (folder / STATUS_FILE).exists():
            found.append(folder)
            continue
        inside = sorted((file.parent for file in folder.glob(f"*/{STATUS_FILE}")), key=_natural)
        if not inside:
            raise StartError(f"{folder} holds no {STATUS_FILE}, nor do its folders: no run has begun there")
        found += inside
        sweep = True
    return found, sweep


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def _state(status: Mapping[str, Any]) -> str:
    state = str(status.get("status", "?"))
    if state != "running":
        return state
    if not status["alive"]:
        return "dead"
    silent = sum(actor.get("silent") is True for actor in _actors(status))
    return f"running, {silent} silent" if silent else state


def _actors(status: Mapping[str, Any]) -> list[dict[str, Any]]:
    actors = _mapping(status, "cluster").get("actors")
    return [actor for actor in actors if isinstance(actor, dict)] if isinstance(actors, list) else []


def _actor_row(actor: Mapping[str, Any], alive: bool, now: float) -> list[str]:
    work = (
        f"{actor['doing']} for {format_seconds(spent)}" if alive and (spent := _spent(actor, now)) is not None else "-"
    )
    silent = {"state": "silent"} if work != "-" and actor.get("silent") is True else {}
    shown = {**actor, **silent, "at work": work}
    return [str(shown.get(name, "?")) for name in _ACTOR_COLUMNS]


def _silent(status: Mapping[str, Any], now: float) -> list[str]:
    """Who has been at something for far longer than is usual, and when that ends."""
    words = []
    for actor in _actors(status) if status["alive"] else []:
        spent = _spent(actor, now)
        if actor.get("silent") is True and spent is not None:
            limit = actor.get("limit_seconds")
            over = f", replaced after {format_seconds(limit)}" if isinstance(limit, int | float) else ""
            words.append(f"{actor.get('name', '?')} for {format_seconds(spent)}{over}")
    return words


def _spent(actor: Mapping[str, Any], now: float) -> float | None:
    since = actor.get("since")
    return max(0.0, now - since) if "doing" in actor and isinstance(since, int | float) else None


def _epochs(status: Mapping[str, Any], now: float) -> str:
    progress = _mapping(status, "progress")
    done, total = status.get("epoch", 0), progress.get("epochs")
    if not isinstance(done, int) or not isinstance(total, int) or total <= 0:
        return f"epoch {done}"
    text = f"epoch {done} of {total} ({done / total:.0%})"
    left = _seconds_left(status, now)
    return text if left is None or done >= total else f"{text}, {format_seconds(left)} left"


def _seconds_left(status: Mapping[str, Any], now: float) -> float | None:
    """As estimated at the last epoch's end, less what has passed since while the process lived."""
    progress = _mapping(status, "progress")
    left, paced_at = progress.get("seconds_left"), progress.get("paced_at")
    if not isinstance(left, int | float) or not isinstance(paced_at, int | float):
        return None
    return max(0.0, left - max(0.0, now - paced_at)) if status["alive"] else float(left)


def _process(status: Mapping[str, Any], now: float) -> str:
    if "pid" not in status:
        return ""
    heard = seconds_since(status.get("updated"), now)
    age = "never heard of" if heard is None else f"heard of {format_seconds(max(0.0, heard))} ago"
    word = "alive" if status["alive"] else "gone" if status.get("status") == "running" else "ended"
    return f"pid {status.get('pid', '?')} on {status.get('host', '?')}: {word}, {age}"


def _stages(status: Mapping[str, Any], now: float) -> str:
    stages = _mapping(status, "progress").get("stages")
    if not isinstance(stages, list) or not status["alive"]:
        return ""
    return "; ".join(
        f"{one.get('name')} {one.get('done')} of {one.get('total')} {one.get('unit')}{_standstill(one, now)}"
        for one in stages
        if isinstance(one, dict)
    )


def _standstill(stage: Mapping[str, Any], now: float) -> str:
    moved = stage.get("moved")
    if not isinstance(moved, int | float) or now - moved < _STUCK_SECONDS:
        return ""
    return f", nothing new for {format_seconds(now - moved)}"


def _pace(status: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    pace = _mapping(status, "progress").get("seconds_per_epoch")
    parts = [f"{pace:.3g} s per epoch"] if isinstance(pace, int | float) else []
    rates = [
        f"{stage} {rate:.3g}"
        for stage in _STAGES
        if isinstance(rate := metrics.get(f"images_per_second/{stage}"), int | float)
    ]
    return "; ".join([*parts, *([f"images per second: {', '.join(rates)}"] if rates else [])])


def _rewards(status: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    parts = []
    if "reward/mean" in metrics:
        parts.append(f"{_shown(metrics['reward/mean'])} in training (epoch {status.get('epoch')})")
    if "eval/score" in metrics:
        parts.append(f"{_shown(metrics['eval/score'])} on held-out prompts (epoch {status.get('evaluated_epoch')})")
    return ", ".join(parts)


def _fault(status: Mapping[str, Any], now: float) -> str:
    fault = _mapping(status, "cluster").get("last_fault")
    if not isinstance(fault, dict):
        return ""
    moment, text = fault.get("time"), str(fault.get("text", "?"))
    if not isinstance(moment, int | float):
        return text
    try:
        when = datetime.fromtimestamp(moment).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return text
    return f"{when} ({format_seconds(max(0.0, now - moment))} ago) {text}"


def _clock(moment: Any) -> str:
    try:
        return datetime.fromisoformat(str(moment)).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return "?"


def _shown(value: Any) -> str:
    return f"{value:z.4f}" if isinstance(value, int | float) else "-"


def _mapping(status: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = status.get(key)
    return value if isinstance(value, Mapping) else {}
