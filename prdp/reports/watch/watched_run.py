"""One run folder, looked at again and again; each look reads only what is new."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from prdp.reports.report_data import RunData, read_config
from prdp.reports.watch.watched_evaluations import WatchedEvaluations
from prdp.support.growing_file import GrowingFile
from prdp.tracking.console import LOG_FILE
from prdp.tracking.evaluations import FOLDER as EVALUATIONS
from prdp.tracking.jsonl import METRICS_FILE
from prdp.tracking.log_follower import LogFollower
from prdp.tracking.status_file import STATUS_FILE, is_alive, load_status
from prdp.tracking.told_status import SUPERVISOR_LOG
from prdp.tracking.warning_lines import MARK

CONFIG_FILE = "config.yaml"
PARTS = (STATUS_FILE, METRICS_FILE, CONFIG_FILE, EVALUATIONS)
"""A folder with one of them is a run's."""
_LINES, _WARNINGS = 40, 20
"""Lines of progress.log, and warnings among all of its lines, that are kept."""

Stamp = tuple[int, int, int] | None
Clean = Callable[[Mapping[str, Any]], Mapping[str, Any]]


class WatchedRun:
    """What is known of a run folder. Nothing in it stops the watch: what cannot be read is told, the rest is shown.

    A link within the folder that leads out of it is not followed.

    Args:
        folder: of the run, which may be empty yet, or be gone at times.
        clean: takes the secrets out of a configuration.

    Attributes:
        data: as the report has it; with an empty `config_text`.
        problems: what could not be read, by file.
        warnings: lines of progress.log with warnings, the newest last; `lines` are its last ones of any kind.
        supervisor: the last line of the supervisor's log.
        there: whether the folder is there and holds something of a run.
        version: counts the looks that found changes in the log or the evaluations.
    """

    def __init__(self, folder: Path, clean: Clean) -> None:
        self.folder, self._clean = folder, clean
        self.version = 0
        self.there = False
        self.problems: dict[str, str] = {}
        self.warnings: deque[str] = deque(maxlen=_WARNINGS)
        self.lines: deque[str] = deque(maxlen=_LINES)
        self.supervisor = ""
        self.evaluations = WatchedEvaluations(folder)
        self._log = LogFollower(folder / METRICS_FILE)
        self._progress = GrowingFile(folder / LOG_FILE)
        self._supervisor = GrowingFile(folder / SUPERVISOR_LOG)
        self._stamps: dict[str, Stamp] = {}
        self.data = RunData(folder, {}, "", {}, 0.0, None, (), {})

    @property
    def whole(self) -> bool:
        """Whether all of the log and of the evaluations that was there at the last look has been read."""
        return self._log.whole and not self.evaluations.waiting

    def poll(self, now: float | None = None, seconds: float = 0.5) -> None:
        """Look at the folder.

        Args:
            now: seconds since 1970; by the clock when left out.
            seconds: how long evaluations may be read; the rest is for the next look.
        """
        now = time.time() if now is None else now
        there = any((self.folder / part).exists() for part in PARTS)
        if not there and self.there:
            # What was read last stays on show.
            self.problems, self.there = {}, False
            self.data = replace(self.data, status={**self.data.status, "alive": False})
            return
        if there and not self.there:
            self.warnings.clear()
            self.lines.clear()
            self.supervisor = ""
        self.there = there
        self._look(CONFIG_FILE, self._read_config)
        self._look(STATUS_FILE, self._read_status)
        self._guard(LOG_FILE, self._read_progress)
        self._guard(SUPERVISOR_LOG, self._read_supervisor)
        anew, changed = self._log.anew, self._guard(METRICS_FILE, self._log.poll)
        if self._log.anew != anew:
            self.evaluations.forget_the_gone()
        self._tell(
            f"{METRICS_FILE} ",
            f"{len(self._log.damaged)} damaged lines are left out, the first is line {self._log.damaged[0]}"
            if self._log.damaged
            else "",
        )
        if changed:
            self.data = replace(
                self.data,
                metrics=self._log.columns(),
                wall_seconds=self._log.wall_seconds,
                last_epoch=self._log.last_epoch,
            )
        moved = self._guard(EVALUATIONS, lambda: self.evaluations.poll(now, seconds))
        broken = list(self.evaluations.problems.values())
        more = f"; and {len(broken) - 2} more" if len(broken) > 2 else ""
        self._tell(f"{EVALUATIONS} ", "; ".join(broken[:2]) + more)
        if moved:
            self.data = replace(self.data, evaluations=self.evaluations.loaded)
        status = {**self.data.status, "alive": is_alive(self.data.status, now)}
        self.data = replace(self.data, status=status)
        if changed or moved:
            self.version += 1

    def _read_config(self, path: Path) -> None:
        config, _ = read_config(path)
        self.data = replace(self.data, config=self._clean(config))

    def _read_status(self, path: Path) -> None:
        self.data = replace(self.data, status=load_status(path.parent))

    def _read_progress(self) -> bool:
        anew, lines = self._progress.poll()
        if anew:
            self.warnings.clear()
            self.lines.clear()
        for line in lines:
            text = line.decode("utf-8", errors="replace")
            if text.strip():
                self.lines.append(text)
            if f"  {MARK}" in text[: 30 + len(MARK)]:
                self.warnings.append(text)
        return anew or bool(lines)

    def _read_supervisor(self) -> bool:
        anew, lines = self._supervisor.poll()
        if anew or lines:
            self.supervisor = lines[-1].decode("utf-8", errors="replace") if lines else ""
        return anew or bool(lines)

    def _look(self, name: str, read: Callable[[Path], None]) -> None:
        """Read a small file where it has changed, or where it could not be read."""
        path = self.folder / name

        def changed() -> bool:
            stamp = stamp_of(path)
            if stamp == self._stamps.get(name) and name not in self.problems:
                return False
            if stamp is not None and not path.is_file():
                raise ValueError(f"{path} is no plain file")
            if stamp is not None:
                read(path)
            self._stamps[name] = stamp
            return True

        self._guard(name, changed)

    def _guard(self, name: str, look: Callable[[], bool]) -> bool:
        """Whether a look found something new; what keeps it from looking becomes a problem."""
        path = self.folder / name
        try:
            check_inside(path, self.folder)
            found = look()
        except (ValueError, OSError) as error:
            self._tell(name, str(error))
            return False
        self._tell(name, "")
        return found

    def _tell(self, name: str, text: str) -> None:
        if text:
            self.problems[name] = text
        else:
            self.problems.pop(name, None)


def stamp_of(path: Path) -> Stamp:
    """What changes when a file or a folder does; None where there is none."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def check_inside(path: Path, folder: Path) -> None:
    """Refuse a file that lies elsewhere, by a link on the way to it.

    Raises:
        ValueError: it does.
    """
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{path} leads out of the run's folder and is not read")
