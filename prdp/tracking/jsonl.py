"""The plain log that every run writes: `metrics.jsonl`, one strict JSON object per line; it keeps `status.json` too."""

from __future__ import annotations

import numbers
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prdp.support.json_lines import read_json_lines
from prdp.support.storage import append, write_atomically
from prdp.tracking.status_file import read_status, start_status, update_status
from prdp.tracking.strict_json import dump, from_strict_json
from prdp.types import Float64, UInt8

METRICS_FILE = "metrics.jsonl"


class JsonlTracker:
    """Appends {"epoch", "wall_seconds", metric: number, ...}; every line is on disk when `log` returns.

    `epoch` counts finished epochs: 0 is the untouched start, the last line of a whole run has all of them.
    `wall_seconds` counts the time this run has been at work, all its sessions together, unless the metrics bring it.
    """

    def __init__(
        self,
        run_dir: Path,
        run_id: str = "",
        resumed_epoch: int | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """Open the log. resumed_epoch, facts: as in `build_trackers`; the first line of each session holds the facts.

        Raises:
            ValueError: the log to be resumed is damaged elsewhere than in its last line.
            OSError: the folder or the log cannot be written.
        """
        self.path = run_dir / METRICS_FILE
        self._run_dir = run_dir
        run_dir.mkdir(parents=True, exist_ok=True)
        earlier = 0.0
        self._latest: dict[str, Any] = {}
        if resumed_epoch is None:
            keep_aside(self.path)
        elif self.path.exists():
            kept = [line for line in read_metrics(run_dir) if line["epoch"] <= resumed_epoch]
            earlier = float(kept[-1].get("wall_seconds", 0.0)) if kept else 0.0
            for line in kept:
                self._note(line)
            write_atomically(self.path, "".join(map(dump, kept)).encode())
        self._facts = dict(facts or {})
        self._start = time.monotonic() - earlier
        append(self.path, "")
        self._epoch = resumed_epoch or 0
        start_status(run_dir, status="running", run_id=run_id, epoch=self._epoch, **self._latest)

    def log(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Append one line.

        Raises:
            TypeError: a metric is not a number.
            prdp.support.storage.StorageError: the line could not be written, e.g. on a full disk; nothing of it is.
        """
        line = {"epoch": int(epoch), "wall_seconds": round(time.monotonic() - self._start, 3)}
        line.update({name: _number(name, value) for name, value in metrics.items()})
        line.update(self._facts)
        self._epoch = max(int(epoch), self._epoch)
        self._note(line)
        append(self.path, dump(line))
        self._facts = {}
        update_status(self._run_dir, epoch=self._epoch, **self._latest)

    def images(self, name: str, images: UInt8, captions: Sequence[str], epoch: int) -> None:
        """Nothing: pictures of a run lie in its evaluations."""

    def histogram(self, name: str, values: Float64, epoch: int) -> None:
        """The log has mean and spread."""

    def finish(self, status: str) -> None:
        """Note how the run ended."""
        update_status(self._run_dir, status=status)

    def _note(self, line: Mapping[str, Any]) -> None:
        """Keep the latest of every number for the status."""
        metrics = {name: value for name, value in line.items() if isinstance(value, int | float) and name != "epoch"}
        self._latest["metrics"] = {**self._latest.get("metrics", {}), **metrics}
        if "eval/score" in line:
            self._latest["evaluated_epoch"] = line["epoch"]


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of a run's log, in order; NaN and infinities are floats again. A half-written last line is left out.

    Raises:
        FileNotFoundError: there is no log.
        ValueError: a line other than the last is no JSON object with an 'epoch', with its number.
    """
    return read_json_lines(Path(run_dir) / METRICS_FILE, parse_row, cut_off=True)


def parse_row(row: Any) -> dict[str, Any]:
    """A line of the log from its JSON value; NaN and infinities are floats again.

    Raises:
        ValueError: it is no object with an integer 'epoch'.
    """
    if not isinstance(row, dict) or not isinstance(row.get("epoch"), int):
        raise ValueError("not an object with an integer 'epoch'")
    row = dict(from_strict_json(row))
    if not isinstance(row.get("wall_seconds", 0.0), int | float):
        raise ValueError(f"'wall_seconds' is {row['wall_seconds']!r:.80}, expected a number")
    return row


def choose_run_id(run_dir: Path, resumed_epoch: int | None) -> str:
    """The id under which services know a run: the one it had when it resumes, else a new one that no other run has.

    A run that ended before its first checkpoint starts over, and is the same run nevertheless. To be asked before
    `build_trackers`, which notes the id in the folder's status.
    """
    status = read_status(run_dir)
    same = resumed_epoch is not None or status.get("status") != "finished"
    earlier = str(status.get("run_id", "")) if same else ""
    # It becomes the name of a file, and a status may have been written by anybody.
    earlier = earlier if re.fullmatch(r"[\w-]{1,64}", earlier) else ""
    return earlier or uuid.uuid4().hex[:12]


def _number(name: str, value: Any) -> int | float:
    if isinstance(value, numbers.Integral):
        return int(value)
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"metric '{name}' is {value!r} ({type(value).__name__}), expected a number") from None


def keep_aside(path: Path) -> None:
    """Rename what an earlier run left in the same folder to the first free name among `<name>.1`, `<name>.2`, ..."""
    if not path.exists():
        return
    number = 1
    while (older := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    path.rename(older)
