"""The plain log that every run writes: `metrics.jsonl`, one strict JSON object per line, and `status.json`."""

from __future__ import annotations

import json
import math
import numbers
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prdp.storage import write_atomically
from prdp.types import UInt8

METRICS_FILE = "metrics.jsonl"
STATUS_FILE = "status.json"
_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


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
        self._status_path = run_dir / STATUS_FILE
        run_dir.mkdir(parents=True, exist_ok=True)
        earlier = 0.0
        if resumed_epoch is None:
            keep_aside(self.path)
        elif self.path.exists():
            kept = [line for line in read_metrics(run_dir) if line["epoch"] <= resumed_epoch]
            earlier = float(kept[-1].get("wall_seconds", 0.0)) if kept else 0.0
            write_atomically(self.path, "".join(_dump(line) + "\n" for line in kept).encode())
        self._facts = dict(facts or {})
        self._start = time.monotonic() - earlier
        self._file = self.path.open("a", encoding="utf-8", buffering=1)
        self._status: dict[str, Any] = {"run_id": run_id, "started": _now(), "epoch": resumed_epoch or 0}
        self._write_status("running")

    def log(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Append one line.

        Raises:
            TypeError: a metric is not a number.
            OSError: the line could not be written, e.g. on a full disk.
        """
        line = {"epoch": int(epoch), "wall_seconds": round(time.monotonic() - self._start, 3)}
        line.update({name: _number(name, value) for name, value in metrics.items()})
        line.update(self._facts)
        self._facts = {}
        self._status["epoch"] = max(int(epoch), self._status["epoch"])
        try:
            self._file.write(_dump(line) + "\n")
        except OSError as error:
            raise OSError(error.errno, f"cannot write epoch {epoch} to the log: {error.strerror}", self.path) from error

    def images(self, name: str, images: UInt8, captions: Sequence[str], epoch: int) -> None:
        """Nothing: pictures of a run lie in its evaluations."""

    def finish(self, status: str) -> None:
        """Close the log and note how the run ended."""
        self._file.close()
        self._write_status(status)

    def _write_status(self, status: str) -> None:
        content = _dump({**self._status, "status": status, "updated": _now()}) + "\n"
        write_atomically(self._status_path, content.encode())


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of a run's log, in order; NaN and infinities are floats again. A half-written last line is left out.

    Raises:
        FileNotFoundError: there is no log.
        ValueError: a line other than the last is no JSON object with an 'epoch', with its number.
    """
    path = Path(run_dir) / METRICS_FILE
    lines = path.read_bytes().split(b"\n")
    while lines and not lines[-1].strip():
        lines.pop()
    rows: list[dict[str, Any]] = []
    for number, text in enumerate(lines, start=1):
        try:
            row = json.loads(text)
            if not isinstance(row, dict) or not isinstance(row.get("epoch"), int):
                raise ValueError("not an object with an integer 'epoch'")
        except ValueError as error:
            if number == len(lines):
                break
            raise ValueError(f"{path} line {number} is damaged: {error}") from None
        rows.append(
            {key: _SPECIAL.get(value, value) if isinstance(value, str) else value for key, value in row.items()}
        )
    return rows


def read_status(run_dir: Path) -> dict[str, Any]:
    """How the run stands: {"status": running, finished, interrupted or failed, "run_id", "epoch", "started",
    "updated"}; empty when the folder has no readable status.
    """
    try:
        status = json.loads((Path(run_dir) / STATUS_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}


def choose_run_id(run_dir: Path, resumed_epoch: int | None) -> str:
    """The id under which services know a run: the one it had when it resumes, else a new one that no other run has.

    To be asked before `build_trackers`, which notes it in the folder's status.
    """
    earlier = str(read_status(run_dir).get("run_id", "")) if resumed_epoch is not None else ""
    return earlier or uuid.uuid4().hex[:12]


def strict_json(value: Any) -> Any:
    """Plain containers that strict JSON can hold: NaN and infinities become strings, numpy scalars numbers."""
    if isinstance(value, Mapping):
        return {str(key): strict_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict_json(item) for item in value]
    if isinstance(value, numbers.Real) and not isinstance(value, bool | int):
        number = float(value)
        if math.isnan(number):
            return "NaN"
        if math.isinf(number):
            return "Infinity" if number > 0 else "-Infinity"
        return int(number) if isinstance(value, numbers.Integral) else number
    return value


def from_strict_json(value: Any) -> Any:
    """Inverse of `strict_json` for numbers."""
    if isinstance(value, dict):
        return {key: from_strict_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [from_strict_json(item) for item in value]
    return _SPECIAL.get(value, value) if isinstance(value, str) else value


def _dump(row: Mapping[str, Any]) -> str:
    return json.dumps(strict_json(row), allow_nan=False, ensure_ascii=False)


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


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
