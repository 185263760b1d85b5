"""`status.json`: how a run stands right now, rewritten whole at every change, for `prdp status` and the supervisor.

{"status": running | finished | interrupted | failed, "run_id", "epoch", "started", "updated": times in UTC,
 "host", "pid", "process_start", "metrics": {name: latest number}, "evaluated_epoch", "progress": see `Progress`,
 "cluster": what the workforce says about its actors}
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prdp.support.storage import write_atomically
from prdp.tracking.strict_json import dump, from_strict_json

STATUS_FILE = "status.json"
HEARTBEAT_SECONDS = 10.0
"""How often a run at work rewrites the file at least."""
SILENT_SECONDS = 60.0
"""After so long without a word the process of a run on another machine is taken for dead."""

_MOST_BYTES = 64 * 2**20
_lock = threading.Lock()


def start_status(run_dir: Path, **fields: Any) -> None:
    """Begin a status of this process; nothing of an earlier one stays.

    Raises:
        StorageError: it cannot be written.
    """
    with _lock:
        _write(run_dir, {"started": _now(), **this_process(), **fields})


def update_status(run_dir: Path, **fields: Any) -> None:
    """Replace fields of a status that this process began, safely from any thread; that of another is left alone.

    Raises:
        StorageError: it cannot be written.
    """
    with _lock:
        current = read_status(run_dir)
        if current and all(current.get(key) == value for key, value in this_process().items()):
            _write(run_dir, {**current, **fields})


def read_status(run_dir: Path) -> dict[str, Any]:
    """How the run stands; empty when the folder has no readable status."""
    try:
        return load_status(run_dir)
    except (OSError, ValueError):
        return {}


def load_status(run_dir: Path) -> dict[str, Any]:
    """How the run stands.

    Raises:
        FileNotFoundError: there is no status.
        ValueError: it is damaged; names the file and what is wrong.
    """
    path = Path(run_dir) / STATUS_FILE
    try:
        if not path.is_file() and path.exists():
            raise ValueError("it is no plain file")
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise ValueError(f"it is larger than {_MOST_BYTES:,} bytes")
        status = from_strict_json(json.loads(content))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(status, dict):
        raise ValueError(f"{path} is damaged: it holds a {type(status).__name__}, expected an object")
    return status


def this_process() -> dict[str, Any]:
    """What tells this process from all others: host, pid and, where the system tells, the start of the process."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "process_start": _process_start(pid)}


def is_alive(status: Mapping[str, Any], now: float | None = None) -> bool:
    """Whether the process that wrote a status still runs.

    On this machine the process table tells; of another machine, the age of the last word.

    Args:
        status: as `read_status` gives it.
        now: seconds since 1970; by the clock when left out.
    """
    pid = status.get("pid")
    if status.get("host") != socket.gethostname() or not isinstance(pid, int) or pid <= 0:
        age = seconds_since(status.get("updated"), time.time() if now is None else now)
        return age is not None and age < SILENT_SECONDS
    return is_running(pid, status.get("process_start"))


def is_running(pid: int, process_start: Any = None) -> bool:
    """Whether a process of this machine runs, and is the one that began at `process_start`, where that is known."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    # The number may have gone to another process since.
    begun = _process_start(pid)
    return begun != 0 and (begun is None or process_start is None or begun == process_start)


def seconds_since(moment: Any, now: float) -> float | None:
    """Seconds from a time in ISO format to `now`, seconds since 1970; None when `moment` is none."""
    try:
        return now - datetime.fromisoformat(str(moment)).timestamp()
    except (ValueError, OverflowError):
        return None


def _process_start(pid: int) -> int | None:
    """Start of a process in ticks since the machine started; 0 for one that has ended, None where nothing tells."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        state, *fields = text.rpartition(")")[2].split()
        return 0 if state in "ZX" else int(fields[18])
    except (OSError, ValueError, IndexError):
        return None


def _write(run_dir: Path, status: Mapping[str, Any]) -> None:
    write_atomically(Path(run_dir) / STATUS_FILE, dump({**status, "updated": _now()}).encode())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
