"""`prdp status <run folder>`: how a job stands, from the `status.json` that it keeps."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prdp.support.errors import StartError
from prdp.support.natural_order import natural_order
from prdp.support.printable import printable, printable_values
from prdp.tracking.console import format_seconds
from prdp.tracking.status_file import STATUS_FILE, is_alive, load_status
from prdp.tracking.strict_json import strict_json
from prdp.tracking.told_status import (
    ACTOR_COLUMNS,
    actor_row,
    actors_of,
    clock_told,
    epochs_told,
    fault_told,
    last_words,
    mapping,
    pace_told,
    process_told,
    rewards_told,
    seconds_left,
    shown,
    silent_actors,
    stages_told,
    state_of,
)


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
    metrics = mapping(status, "metrics")
    lines = [f"{status['folder']}: {state_of(status)}, {epochs_told(status, now)}"]
    facts = {
        "run": f"{status.get('run_id') or '?'}, started {clock_told(status.get('started'))}",
        "process": process_told(status, now),
        "now": stages_told(status, now),
        "silent": "; ".join(silent_actors(status, now)),
        "pace": pace_told(status, metrics),
        "reward": rewards_told(status, metrics),
        "supervisor": printable(supervised),
    }
    lines += [f"  {name:<10} {text}" for name, text in facts.items() if text]
    if actors := actors_of(status):
        rows = [actor_row(actor, status["alive"], now) for actor in actors]
        lines += ["", *("  " + row for row in table(rows, ACTOR_COLUMNS).splitlines())]
    if fault := fault_told(status, now):
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
    metrics, progress = mapping(status, "metrics"), mapping(status, "progress")
    return [
        str(status["folder"]),
        state_of(status),
        f"{status.get('epoch', '?')}/{progress.get('epochs', '?')}",
        format_seconds(seconds_left(status, now)),
        shown(metrics.get("reward/mean")),
        shown(metrics.get("eval/score")),
        fault_told(status, now) or "-",
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
        inside = sorted((file.parent for file in folder.glob(f"*/{STATUS_FILE}")), key=natural_order)
        if not inside:
            raise StartError(f"{folder} holds no {STATUS_FILE}, nor do its folders: no run has begun there")
        found += inside
        sweep = True
    return found, sweep
