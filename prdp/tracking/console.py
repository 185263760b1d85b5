"""Progress on the console: live bars in a terminal, one plain line per epoch elsewhere; `progress.log` always.

A run that keeps a `status.json` has its progress there, too.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from prdp.support.printable import printable
from prdp.support.storage import open_to_append
from prdp.tracking.status_file import HEARTBEAT_SECONDS, read_status, update_status
from prdp.tracking.warning_lines import WarningLines

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

log = logging.getLogger(__name__)

LOG_FILE = "progress.log"
_RECENT = 20
_COLUMNS = (
    ("reward/mean", "reward", "{:z.4f}"),
    ("eval/score", "eval", "{:z.4f}"),
    ("loss", "loss", "{:z.4g}"),
    ("approx_kl", "kl", "{:.2e}"),
    ("clipfrac", "clip", "{:.0%}"),
    ("images_per_second/epoch", "img/s", "{:.1f}"),
)


class Stage:
    """A piece of work inside an epoch that counts its items."""

    def __init__(self, name: str, total: int, unit: str, bars: Bars | None = None, task: TaskID | None = None) -> None:
        self.name, self.total, self.unit, self.done = name, total, unit, 0
        self.moved = time.time()
        self._bars, self._task = bars, task

    def advance(self, n: int = 1) -> None:
        """Report n more items done."""
        self.done += n
        self.moved = time.time()
        if self._bars is not None and self._task is not None:
            self._bars.advance(self._task, n)


class Progress:
    """Shows how far a run is, how fast it goes and how long it still takes. Use as a context manager.

    Where the folder has a status (`prdp.tracking.status_file`), its fields are kept up to date, at least every
    `HEARTBEAT_SECONDS`:

        "progress": {"epoch", "epochs", "seconds_per_epoch", "seconds_left": as of "paced_at", seconds since 1970,
                     "stages": [{"name", "done", "total", "unit", "moved": when something was done last}]}
        "cluster": what `cluster` was told last
    """

    def __init__(
        self,
        epochs: int,
        start_epoch: int = 0,
        run_dir: Path | None = None,
        enabled: bool = True,
        stream: TextIO | None = None,
        interactive: bool | None = None,
        is_ours: Callable[[], bool] = lambda: True,
    ) -> None:
        """
        Args:
            epochs: epochs of the whole run.
            start_epoch: epochs already done when a run resumes.
            run_dir: where `progress.log` is appended to; None for no file.
            enabled: False shows nothing and keeps only the file.
            stream: where to print; standard output by default.
            interactive: live bars or plain lines; by default, bars when the stream is a terminal.
            is_ours: whether `run_dir` is still this process's; warnings are not kept in another's.
        """
        self.epochs, self.start_epoch, self._done = epochs, start_epoch, start_epoch
        self._enabled = enabled
        self._stream = stream or sys.stdout
        self._interactive = enabled and (self._stream.isatty() if interactive is None else interactive)
        self._path = run_dir / LOG_FILE if run_dir is not None else None
        self._file: TextIO | None = None
        self._is_ours = is_ours
        self._warnings = WarningLines(self._keep_warning)
        self._bars: Bars | None = None
        self._console: Console | None = None
        self._run_task: TaskID | None = None
        self._numbers = ""
        self._paces: deque[float] = deque(maxlen=_RECENT)
        self._last_end = 0.0
        self._run_dir = run_dir
        self._stages: dict[int, Stage] = {}
        self._paced_at: float | None = None
        self._cluster: Callable[[], Mapping[str, Any]] = dict
        self._heart: threading.Thread | None = None
        self._stop = threading.Event()
        self._writing = threading.Lock()

    def __enter__(self) -> Self:
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open_to_append(self._path)
            logging.getLogger("prdp").addHandler(self._warnings)
        if self._interactive:
            self._start_bars()
        self._last_end = time.monotonic()
        if self._run_dir is not None and read_status(self._run_dir):
            self._write_status()
            self._stop.clear()
            self._heart = threading.Thread(target=self._beat, name="prdp-heartbeat", daemon=True)
            self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._heart is not None:
            self._stop.set()
            self._heart.join()
            self._heart = None
            self._write_status()
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
        if self._file is not None:
            logging.getLogger("prdp").removeHandler(self._warnings)
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None

    def message(self, text: str) -> None:
        """Print a line above the bars, and keep it in the file; control characters become visible."""
        text = printable(text, lines=True)
        self._record(text)
        self._show(text)

    @contextmanager
    def stage(self, name: str, total: int, unit: str = "images") -> Iterator[Stage]:
        """A nested bar while a stage such as 'sample' works through `total` items; gone when it ends."""
        bars, task = self._bars, None
        if bars is not None:
            task = bars.add_task(name, total=total, unit=unit)
        stage = Stage(name, total, unit, bars, task)
        self._stages[id(stage)] = stage
        try:
            yield stage
        finally:
            del self._stages[id(stage)]
            if bars is not None and task is not None:
                bars.remove_task(task)

    def cluster(self, status: Callable[[], Mapping[str, Any]]) -> None:
        """Whom to ask how the actors are, for `status.json`, whenever it is written.

        Args:
            status: answers what `Workforce.status` does, from any thread.
        """
        self._cluster = status
        if self._heart is not None:
            self._write_status()

    def epoch_done(self, metrics: Mapping[str, float]) -> None:
        """Count an epoch; its numbers, by their metric names, become one line.

        The time left follows time/epoch and time/evaluate where they are given, else the clock between the calls.
        """
        self._done += 1
        now = time.monotonic()
        if "time/epoch" in metrics:
            self._paces.append(metrics["time/epoch"] + metrics.get("time/evaluate", 0.0))
        else:
            self._paces.append(now - self._last_end)
        self._last_end = now
        self._paced_at = time.time()
        if self._heart is not None:
            self._write_status()
        line = self._line(metrics)
        self._record(line)
        if self._bars is None or self._run_task is None:
            self._show(line)
        else:
            self._numbers = _numbers(metrics)
            self._bars.update(self._run_task, completed=self._done)
            if "eval/score" in metrics:
                self._show(line)

    def seconds_left(self) -> float | None:
        """Estimate from the pace of the last epochs; None before the first one ends."""
        paces = list(self._paces)
        return sum(paces) / len(paces) * max(0, self.epochs - self._done) if paces else None

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            self._write_status()

    def _write_status(self) -> None:
        """Under a lock from the first look on, or the heartbeat may put an older state in place of a newer one."""
        assert self._run_dir is not None
        with self._writing:
            cluster = dict(self._cluster())
            fields = {"progress": self._fields(), **({"cluster": cluster} if cluster else {})}
            try:
                update_status(self._run_dir, **fields)
            except OSError as error:
                # The status is for onlookers: the log, which is required, tells of a disk that stays full.
                log.warning("the status could not be written: %s", error)

    def _fields(self) -> dict[str, Any]:
        paces = list(self._paces)
        return {
            "epoch": self._done,
            "epochs": self.epochs,
            "seconds_per_epoch": sum(paces) / len(paces) if paces else None,
            "seconds_left": self.seconds_left(),
            "paced_at": self._paced_at,
            "stages": [
                {"name": one.name, "done": one.done, "total": one.total, "unit": one.unit, "moved": one.moved}
                for one in list(self._stages.values())
            ],
        }

    def _line(self, metrics: Mapping[str, float]) -> str:
        width = len(str(self.epochs))
        return f"epoch {self._done:>{width}}/{self.epochs}  {_numbers(metrics)}  left {self._left()}"

    def _left(self) -> str:
        return format_seconds(self.seconds_left())

    def _keep_warning(self, text: str) -> None:
        if self._is_ours():
            self._record(printable(text, lines=True))

    def _record(self, text: str) -> None:
        if self._file is None:
            return
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        try:
            self._file.write("".join(f"{stamp}  {line}\n" for line in text.splitlines()))
        except OSError as error:
            # As with the status: the log, which is required, tells of a disk that stays full.
            log.warning("%s could not be written: %s", self._path, error)

    def _show(self, text: str) -> None:
        if self._console is not None:
            self._console.print(text, markup=False, highlight=False)
        elif self._enabled:
            print(text, file=self._stream, flush=True)

    def _start_bars(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Task, TextColumn
        from rich.progress import Progress as Bars
        from rich.text import Text

        owner = self

        class Left(TextColumn):
            """Time left, and for a stage its rate."""

            def render(self, task: Task) -> Text:
                if task.id == owner._run_task:
                    return Text(f"{owner._left()} left")
                speed = task.finished_speed or task.speed
                rate = "" if speed is None else f"  {speed:.1f} {task.fields['unit']}/s"
                return Text(f"{format_seconds(task.time_remaining)} left{rate}", style="dim")

        class Lines(Bars):
            """The bars, and below them the numbers of the last epoch, which need a line of their own."""

            def get_renderables(self) -> Iterator[RenderableType]:
                yield from super().get_renderables()
                if owner._numbers:
                    yield Text(owner._numbers, style="dim", no_wrap=True, overflow="ellipsis")

        self._console = Console(file=self._stream, force_terminal=True)
        columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), Left(""))
        self._bars = Lines(*columns, console=self._console, transient=True)
        self._run_task = self._bars.add_task("epochs", total=self.epochs, completed=self.start_epoch)
        self._bars.start()


def format_seconds(seconds: float | None) -> str:
    """Seconds as a person says them: '42s', '3m 05s', '2h 10m', '1d 4h'; '?' for None."""
    if seconds is None:
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600}h"


def _numbers(metrics: Mapping[str, float]) -> str:
    return "  ".join(f"{label} {style.format(metrics[name])}" for name, label, style in _COLUMNS if name in metrics)
