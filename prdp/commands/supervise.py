"""`prdp supervise train ...`: runs a training run in a child process and starts it again when it dies."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

import prdp
from prdp.checkpoints.checkpoint import FOLDER as CHECKPOINTS
from prdp.support.errors import ConfigError, StartError
from prdp.support.interruption import EXIT_CODE, LOST_EXIT_CODE
from prdp.support.storage import append
from prdp.tracking.status_file import is_alive, read_status
from prdp.tracking.told_status import SUPERVISOR_LOG as LOG_FILE

_FORWARDED = {signal.SIGTERM: signal.SIGTERM, signal.SIGINT: signal.SIGINT, signal.SIGHUP: signal.SIGTERM}
_MISTAKE = 2
"""Exit code of a mistake in the command; once that command has worked, something around it has changed instead."""
_SILENT = "ended without a word, as when its Ray node is lost or something in it calls _exit,"
_UNFINISHED = "ended with exit code 0 although the run is not finished"
_START = "import sys; sys.path.append(sys.argv.pop(1)); from prdp.cli import main; sys.exit(main())"
_OPTIONS_FIRST = "usage: prdp supervise [options] train [OVERRIDES]; `prdp supervise --help` tells more"


@dataclass(frozen=True)
class Patience:
    """How often and how soon to start again.

    Attributes:
        failures: deaths in a row, without an epoch finished that was never finished before, after which to give up.
        first_pause: seconds before the second start; doubles with each further failure in a row.
        longest_pause: seconds that no pause exceeds.
    """

    failures: int = 10
    first_pause: float = 1.0
    longest_pause: float = 300.0

    def pause(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row."""
        return min(self.longest_pause, self.first_pause * 2.0 ** min(failures - 1, 60))


def main(arguments: Sequence[str]) -> int:
    """Supervise a run until it is done, cannot be mended by starting it again, or is stopped."""
    parser = argparse.ArgumentParser(
        prog="prdp supervise",
        usage="prdp supervise [options] train [OVERRIDES]",
        description="Run `prdp train` and start it again, from its newest checkpoint, when it is killed by a signal or "
        f"exits with {EXIT_CODE}, as SIGTERM makes it do, with {LOST_EXIT_CODE}, when its cluster is lost, or without "
        "a word, as Ray makes it do when its own node dies. A start that is refused is tried again after one that got "
        "to work, as while its cluster's head is restarted. Other failures are not retried.",
        allow_abbrev=False,
    )
    patience = Patience()
    parser.add_argument(
        "--failures",
        type=int,
        default=patience.failures,
        metavar="N",
        help="give up after N failures in a row without a newly finished epoch (%(default)s)",
    )
    parser.add_argument(
        "--first-pause", type=float, default=patience.first_pause, metavar="SECONDS", help="doubles (%(default)g)"
    )
    parser.add_argument(
        "--longest-pause", type=float, default=patience.longest_pause, metavar="SECONDS", help="(%(default)g)"
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, help="train and its overrides")
    options = parser.parse_args(arguments)
    for name, value, least in (
        ("--failures", options.failures, 1),
        ("--first-pause", options.first_pause, 0),
        ("--longest-pause", options.longest_pause, 0),
    ):
        if not least <= value < float("inf"):
            raise ConfigError(f"{name} {value}: must be at least {least}, and finite")
    folder, words = settled(options.command)
    status = read_status(folder)
    if status.get("status") == "running" and is_alive(status, time.time()):
        raise StartError(f"{folder}: pid {status.get('pid')} on {status.get('host')} is at work on this run")
    patience = Patience(options.failures, options.first_pause, options.longest_pause)
    return Supervisor(own_command(words), folder, patience).run()


def own_command(words: Sequence[str]) -> list[str]:
    """`prdp WORDS` by this interpreter and package, so that modules of the current folder are not taken for others."""
    return [sys.executable, "-P", "-c", _START, str(Path(prdp.__file__).parents[1]), *words]


def settled(command: Sequence[str]) -> tuple[Path, list[str]]:
    """The run's folder, and the command with that folder written out and `checkpoint.resume=auto`.

    A folder named after the time of the start would be another one at each start.

    Raises:
        ConfigError: not a run of `prdp train`, a sweep, a mistake in the overrides, or `checkpoint.resume` among them.
    """
    if not command or command[0] != "train":
        given = f"'{command[0]}'" if command else "nothing"
        raise ConfigError(f"supervises 'train', got {given}; {_OPTIONS_FIRST}")
    parser = argparse.ArgumentParser(prog="prdp supervise train", allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("--config-dir", type=Path, action="append", default=[])
    options = parser.parse_intermixed_args(command[1:])
    if options.multirun:
        raise ConfigError(
            "a sweep is not supervised as a whole: supervise its jobs, one command each, and give them one "
            "tracking.wandb_group"
        )
    keys = [word.partition("=")[0].lstrip("+~") for word in options.overrides]
    if "checkpoint.resume" in keys:
        raise ConfigError("checkpoint.resume: leave it out, a supervised run always has checkpoint.resume=auto")
    from prdp.configuration.compose import Composer

    with Composer(options.overrides, folders=options.config_dir) as composer:
        folder = Path(composer.jobs()[0].config.output_dir).absolute()
    kept = [word for word, key in zip(options.overrides, keys, strict=True) if key != "output_dir"]
    folders = [part for given in options.config_dir for part in ("--config-dir", str(given))]
    return folder, ["train", *folders, *kept, f"output_dir={_quoted(str(folder))}", "checkpoint.resume=auto"]


class Supervisor:
    """Keeps one command going.

    Args:
        command: of the child process; to be run from the main thread, since signals are passed on to the child.
        run_dir: the run's folder: finished epochs are seen there, and `LOG_FILE` is written.
        patience: how often and how soon to start again.
    """

    def __init__(self, command: Sequence[str], run_dir: Path, patience: Patience) -> None:
        self._command, self._run_dir, self._patience = list(command), run_dir, patience
        self._child: subprocess.Popen[bytes] | None = None
        self._pid = self._stopped_by = 0
        self._pending: list[int] = []
        self._reader, self._writer = -1, -1

    def run(self) -> int:
        """The exit code: the child's when it was not to be started again, 128 + n when signal n ended it after this
        process was told to stop, 1 after too many failures. 0 only when the child wrote that the run is 'finished'.
        """
        reached, failures = finished_epochs(self._run_dir), 0
        worked = False
        with self._signals():
            while True:
                code = self._one()
                if self._stopped_by:
                    return _shell_code(code) or self._unless_finished()
                status = read_status(self._run_dir)
                silent = self._silent(code, status)
                at_work = status.get("pid") == self._pid
                kept_out = code == _MISTAKE and worked and not at_work
                worked = worked or at_work
                if code == 0 and not silent and not (at_work and status.get("status") == "finished"):
                    earlier = "" if at_work or not status else ", by an earlier start"
                    found = f"{status.get('status', 'missing')}{earlier}"
                    self._say(f"{_UNFINISHED}, its status is {found}: not started again")
                    return 1
                if not (silent or kept_out or _worth_another(code)):
                    if code:
                        self._say(f"{_cause(code)}: not started again")
                    return _shell_code(code)
                now = finished_epochs(self._run_dir)
                failures = 1 if now > reached else failures + 1
                reached = max(now, reached)
                cause = f"{_SILENT if silent else _cause(code)} after {reached} finished epochs"
                if failures >= self._patience.failures:
                    self._say(f"{cause}: given up, {failures} failures in a row without a newly finished epoch")
                    return 1
                pause = self._patience.pause(failures)
                self._say(f"{cause}: starts again in {pause:g} s (failure {failures} of {self._patience.failures})")
                if self._told_to_stop(pause):
                    return 128 + self._stopped_by

    def _unless_finished(self) -> int:
        """Exit code of a child that was told to stop and ended with 0: it may have been done just then."""
        status = read_status(self._run_dir)
        done = status.get("pid") == self._pid and status.get("status") == "finished"
        return 0 if done else 128 + self._stopped_by

    def _silent(self, code: int, status: Mapping[str, Any]) -> bool:
        """Whether the child is gone although its status says that it runs.

        Ray ends a driver whose node dies so, by 1, and so does whatever calls `_exit` in it.
        """
        return code in (0, 1) and status.get("status") == "running" and status.get("pid") == self._pid

    def _one(self) -> int:
        # In a process group of its own, or the terminal would interrupt the child a second time.
        self._child = subprocess.Popen(self._command, process_group=0)
        self._pid = self._child.pid
        self._deliver()
        try:
            return self._child.wait()
        finally:
            self._child = None

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        self._reader, self._writer = os.pipe()
        before = {}
        for number in _FORWARDED:
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup does with SIGHUP
                before[number] = signal.signal(number, self._on_signal)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(self._reader)
            os.close(self._writer)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stopped_by = self._stopped_by or number
        self._pending.append(_FORWARDED[signal.Signals(number)])
        self._deliver()
        os.write(self._writer, b"!")

    def _deliver(self) -> None:
        while self._child is not None and self._pending:
            self._child.send_signal(self._pending.pop(0))

    def _told_to_stop(self, seconds: float) -> bool:
        """Wait; whether a signal came first."""
        select.select([self._reader], [], [], seconds)
        return bool(self._stopped_by)

    def _say(self, text: str) -> None:
        print(f"prdp supervise: {text}", file=sys.stderr, flush=True)
        stamp = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
        try:
            self._run_dir.mkdir(parents=True, exist_ok=True)
            append(self._run_dir / LOG_FILE, f"{stamp} {text}\n")
        except OSError as error:
            print(f"prdp supervise: {self._run_dir / LOG_FILE} cannot be written: {error}", file=sys.stderr, flush=True)


def finished_epochs(run_dir: Path) -> int:
    """The most epochs that the status or a checkpoint of a run tell of."""
    told = read_status(run_dir).get("epoch")
    saved = [
        int(match[1])
        for path in (run_dir / CHECKPOINTS).glob("epoch_*")
        if (match := re.fullmatch(r"epoch_(\d+)", path.name))
    ]
    return max([told if isinstance(told, int) else 0, *saved])


def _worth_another(code: int) -> bool:
    return code in (EXIT_CODE, LOST_EXIT_CODE) or (code < 0 and code != -signal.SIGINT)


def _shell_code(code: int) -> int:
    return code if code >= 0 else 128 - code


def _cause(code: int) -> str:
    if code in (EXIT_CODE, LOST_EXIT_CODE):
        return f"ended with {code}, which can be resumed,"
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"killed by {name}" + (" (out of memory?)" if code == -signal.SIGKILL else "")


def _quoted(text: str) -> str:
    """A text as a value in Hydra's grammar: quoted, with quotes and the backslashes before them escaped."""
    if re.fullmatch(r"[\w./-]+", text, re.ASCII):
        return text
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f"'{escaped}{chr(92) * trailing}'"
