"""What the page says in words and numbers: a table of the runs, and each one's machines, warnings and configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import prdp
from prdp.reports.report_data import changes
from prdp.reports.report_html import FACTS, lookup
from prdp.reports.report_text import interval, score, signed, tone
from prdp.reports.watch.watch_charts import MOST_RUNS
from prdp.reports.watch.watched_run import WatchedRun
from prdp.reports.watch.watched_runs import WatchedRuns
from prdp.support.printable import printable_values
from prdp.tracking.console import format_seconds
from prdp.tracking.told_status import (
    ACTOR_COLUMNS,
    STAGES,
    actor_row,
    actors_of,
    clock_told,
    epochs_told,
    fault_told,
    mapping,
    process_told,
    silent_actors,
    stages_told,
    state_of,
)

_TONES = {"running": "running", "finished": "finished", "dead": "failed", "failed": "failed", "interrupted": "failed"}
_MOST_DIFFERENCES = 60


class WatchState:
    """Tells how the runs stand, as plain containers for JSON; what costs time is kept as long as a run's version."""

    def __init__(self, runs: WatchedRuns) -> None:
        self._runs = runs
        self._kept: dict[WatchedRun, tuple[int, dict[str, Any]]] = {}

    def table(self, now: float) -> dict[str, Any]:
        """{"version", "most", "runs": [a row each]}; a row has what the table of runs shows, and "version"."""
        rows = [
            {"id": i, "name": name, **self._row(run, now)}
            for i, (run, name) in enumerate(zip(self._runs.runs, self._runs.names(), strict=True))
        ]
        return dict(printable_values({"version": prdp.__version__, "most": MOST_RUNS, "runs": rows}))

    def details(self, place: int, now: float) -> dict[str, Any]:
        """What is told of the chosen run alone: machines, warnings, rates, configuration."""
        run = self._runs.runs[place]
        status = {"alive": False, **run.data.status}
        metrics, progress = mapping(status, "metrics"), mapping(status, "progress")
        pace = progress.get("seconds_per_epoch")
        rates = [["seconds per epoch", f"{pace:.3g}"]] if isinstance(pace, int | float) else []
        for stage in STAGES:
            rate = metrics.get(f"images_per_second/{stage}")
            if isinstance(rate, int | float):
                rates.append([f"images per second, {stage}", f"{rate:.3g}"])
        facts = [(name, lookup(run.data.config, key)) for key, name in FACTS]
        told = {
            "id": place,
            "folder": str(run.folder),
            "started": clock_told(status["started"]) if "started" in status else "",
            "worked": format_seconds(run.data.wall_seconds) if run.data.wall_seconds else "",
            "rates": rates,
            "now": stages_told(status, now),
            "process": process_told(status, now),
            "silent": silent_actors(status, now),
            "supervisor": run.supervisor,
            "actor_columns": ACTOR_COLUMNS,
            "actors": [actor_row(actor, status["alive"], now) for actor in actors_of(status)],
            "warnings": list(run.warnings),
            "lines": list(run.lines),
            "facts": [[name, str(value)] for name, value in facts if value is not None],
        }
        return dict(printable_values(told))

    def _row(self, run: WatchedRun, now: float) -> dict[str, Any]:
        status = {"alive": False, **run.data.status}
        progress = mapping(status, "progress")
        word, style = _state(run, status)
        kept = self._kept.get(run)
        if kept is None or kept[0] != run.version:
            kept = self._kept[run] = run.version, _scores(run)
        return {
            "state": word,
            "style": style,
            "epochs": epochs_told(status, now) if status.get("status") else _logged_epochs(run),
            "done": _share(status.get("epoch"), progress.get("epochs")),
            "fault": fault_told(status, now),
            "problems": [f"{name.strip()}: {text}" for name, text in run.problems.items()],
            "reading": _reading(run),
            "version": run.version,
            **kept[1],
        }


def _scores(run: WatchedRun) -> dict[str, Any]:
    """Rewards and held-out scores of a run."""
    data, evaluations = run.data, run.evaluations.loaded
    rewards = data.metrics.get("reward/mean")
    heldout = change = None
    if evaluations:
        part = evaluations[-1].summary()["score"]
        bounds = (part["mean"], part["low"], part["high"])
        heldout = {"score": score(bounds[0]), "interval": interval(bounds), "epoch": evaluations[-1].epoch}
    elif "eval/score" in data.metrics:
        last = [data.metrics[name][1][-1] for name in _EVALUATED if name in data.metrics]
        bounds = (last[0], last[1], last[2]) if len(last) == 3 else (last[0], math.nan, math.nan)
        epoch = data.metrics["eval/score"][0][-1]
        heldout = {"score": score(bounds[0]), "interval": interval(bounds), "epoch": epoch}
    overall = changes(evaluations[0], evaluations[-1])[0] if len(evaluations) > 1 else None
    if overall is not None:
        change = {
            "since": evaluations[0].epoch,
            "before": score(overall.before[0]),
            "before_interval": interval(overall.before),
            "after": score(overall.after[0]),
            "after_interval": interval(overall.after),
            "difference": signed(overall.difference[0]),
            "interval": interval(overall.difference, signed),
            "tone": tone(overall.sign, overall.difference[0]),
        }
    return {
        "reward": {"score": score(rewards[1][-1]), "epoch": rewards[0][-1]} if rewards else None,
        "heldout": heldout,
        "change": change,
        "alarms": [] if run.evaluations.waiting else run.evaluations.alarms(),
    }


_EVALUATED = ("eval/score", "eval/score_low", "eval/score_high")


def _state(run: WatchedRun, status: Mapping[str, Any]) -> tuple[str, str]:
    """The state in a word, and how it is shown."""
    if not run.there:
        return ("gone", "failed") if run.version else ("not begun", "")
    if not status.get("status"):
        return run.data.state[0], ""
    word = state_of(status)
    return word, _TONES.get(word.partition(",")[0], "")


def _reading(run: WatchedRun) -> str:
    if run.evaluations.waiting:
        read = len(run.evaluations.loaded)
        return f"Reading the evaluations: {read} of {read + run.evaluations.waiting}"
    return "" if run.whole else "Reading the log"


def _logged_epochs(run: WatchedRun) -> str:
    return "" if run.data.last_epoch is None else f"epoch {run.data.last_epoch}"


def _share(done: Any, total: Any) -> float | None:
    if not isinstance(done, int) or not isinstance(total, int) or total <= 0:
        return None
    return min(1.0, max(0.0, done / total))


def differences(configs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Keys that not all runs with a configuration have the same value of, with each run's value."""
    flat = [_flat(config, "") for config in configs]
    known = [one for one in flat if one]
    keys = dict.fromkeys(key for one in known for key in one)
    different = [key for key in keys if key != "output_dir" and len({one.get(key) for one in known}) > 1]
    return [[key, *(one.get(key, "\N{EN DASH}") for one in flat)] for key in different[:_MOST_DIFFERENCES]]


def _flat(config: Any, key: str) -> dict[str, str]:
    if isinstance(config, Mapping) and config:
        parts = [_flat(value, f"{key}.{name}" if key else str(name)) for name, value in config.items()]
        return {name: value for part in parts for name, value in part.items()}
    return {key: str(config)[:200]} if key else {}
