"""A status in words, for a terminal and for a page; whatever a status lacks is left out.

A status is what `load_status` gives, with "alive", whether its process lives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from prdp.tracking.console import format_seconds
from prdp.tracking.status_file import seconds_since

SUPERVISOR_LOG = "supervise.log"
"""In a run's folder, of `prdp supervise`: a line for every start after the first, and for the end."""
ACTOR_COLUMNS = ("name", "kind", "node", "pid", "state", "restarts", "chunks", "at work")
_STUCK_SECONDS = 60.0
STAGES = ("sample", "score", "learn", "epoch")
"""Whose images per second are told."""


def state_of(status: Mapping[str, Any]) -> str:
    """The status in a word or two: 'dead' for one that says running and whose process is gone."""
    state = str(status.get("status", "?"))
    if state != "running":
        return state
    if not status["alive"]:
        return "dead"
    silent = sum(actor.get("silent") is True for actor in actors_of(status))
    return f"running, {silent} silent" if silent else state


def actors_of(status: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the workforce said of its actors last."""
    actors = mapping(status, "cluster").get("actors")
    return [actor for actor in actors if isinstance(actor, dict)] if isinstance(actors, list) else []


def actor_row(actor: Mapping[str, Any], alive: bool, now: float) -> list[str]:
    """An actor in the columns of `ACTOR_COLUMNS`."""
    work = (
        f"{actor['doing']} for {format_seconds(spent)}" if alive and (spent := _spent(actor, now)) is not None else "-"
    )
    silent = {"state": "silent"} if work != "-" and actor.get("silent") is True else {}
    shown = {**actor, **silent, "at work": work}
    return [str(shown.get(name, "?")) for name in ACTOR_COLUMNS]


def silent_actors(status: Mapping[str, Any], now: float) -> list[str]:
    """Who has been at something for far longer than is usual, and when that ends."""
    words = []
    for actor in actors_of(status) if status["alive"] else []:
        spent = _spent(actor, now)
        if actor.get("silent") is True and spent is not None:
            limit = _finite(actor.get("limit_seconds"))
            over = f", replaced after {format_seconds(limit)}" if limit is not None else ""
            words.append(f"{actor.get('name', '?')} for {format_seconds(spent)}{over}")
    return words


def _spent(actor: Mapping[str, Any], now: float) -> float | None:
    since = _finite(actor.get("since"))
    return max(0.0, now - since) if "doing" in actor and since is not None else None


def epochs_told(status: Mapping[str, Any], now: float) -> str:
    """How many epochs are done, of how many, and the time left."""
    progress = mapping(status, "progress")
    done, total = status.get("epoch", 0), progress.get("epochs")
    if not isinstance(done, int) or not isinstance(total, int) or total <= 0:
        return f"epoch {done}"
    text = f"epoch {done} of {total} ({done / total:.0%})"
    left = seconds_left(status, now)
    return text if left is None or done >= total else f"{text}, {format_seconds(left)} left"


def seconds_left(status: Mapping[str, Any], now: float) -> float | None:
    """As estimated at the last epoch's end, less what has passed since while the process lived."""
    progress = mapping(status, "progress")
    left, paced_at = _finite(progress.get("seconds_left")), _finite(progress.get("paced_at"))
    if left is None or paced_at is None:
        return None
    return max(0.0, left - max(0.0, now - paced_at)) if status["alive"] else left


def process_told(status: Mapping[str, Any], now: float) -> str:
    """Which process it is, whether it lives, and when it was heard of."""
    if "pid" not in status:
        return ""
    heard = seconds_since(status.get("updated"), now)
    age = "never heard of" if heard is None else f"heard of {format_seconds(max(0.0, heard))} ago"
    word = "alive" if status["alive"] else "gone" if status.get("status") == "running" else "ended"
    return f"pid {status.get('pid', '?')} on {status.get('host', '?')}: {word}, {age}"


def stages_told(status: Mapping[str, Any], now: float) -> str:
    """What is being done now, stage by stage; empty for a process that is gone."""
    stages = mapping(status, "progress").get("stages")
    if not isinstance(stages, list) or not status["alive"]:
        return ""
    return "; ".join(
        f"{one.get('name')} {one.get('done')} of {one.get('total')} {one.get('unit')}{_standstill(one, now)}"
        for one in stages
        if isinstance(one, dict)
    )


def _standstill(stage: Mapping[str, Any], now: float) -> str:
    moved = _finite(stage.get("moved"))
    if moved is None or now - moved < _STUCK_SECONDS:
        return ""
    return f", nothing new for {format_seconds(now - moved)}"


def pace_told(status: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """Seconds per epoch, and images per second of each stage."""
    pace = mapping(status, "progress").get("seconds_per_epoch")
    parts = [f"{pace:.3g} s per epoch"] if isinstance(pace, int | float) else []
    rates = [
        f"{stage} {rate:.3g}"
        for stage in STAGES
        if isinstance(rate := metrics.get(f"images_per_second/{stage}"), int | float)
    ]
    return "; ".join([*parts, *([f"images per second: {', '.join(rates)}"] if rates else [])])


def rewards_told(status: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """The newest reward in training and on held-out prompts."""
    parts = []
    if "reward/mean" in metrics:
        parts.append(f"{shown(metrics['reward/mean'])} in training (epoch {status.get('epoch')})")
    if "eval/score" in metrics:
        parts.append(f"{shown(metrics['eval/score'])} on held-out prompts (epoch {status.get('evaluated_epoch')})")
    return ", ".join(parts)


def fault_told(status: Mapping[str, Any], now: float) -> str:
    """The last fault of the workforce with its time; empty without one."""
    fault = mapping(status, "cluster").get("last_fault")
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


def last_words(run_dir: Path) -> str:
    """The last line of the supervisor's log; empty where there is none."""
    try:
        lines = (run_dir / SUPERVISOR_LOG).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return lines[-1] if lines else ""


def clock_told(moment: Any) -> str:
    """A moment in ISO format in local time; '?' for what is none."""
    try:
        return datetime.fromisoformat(str(moment)).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return "?"


def shown(value: Any) -> str:
    """A number with four decimals; a hyphen for what is none."""
    return f"{value:z.4f}" if isinstance(value, int | float) else "-"


def mapping(status: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The mapping at a key; empty where something else stands there."""
    value = status.get(key)
    return value if isinstance(value, Mapping) else {}


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
