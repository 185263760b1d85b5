"""Processes that end without leaving their work in any way: a word about them, and no success for them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

from prdp.support.interruption import last_act

# Waits for a line; at the end of its input without one, whoever held the other end is dead.
_WATCH = 'read -r left || printf "%s\\n" "$1" >&2'


@contextlib.contextmanager
def told_when_silent(text: str) -> Iterator[None]:
    """Have `text` printed to standard error when this process ends within the block and leaves it in no way.

    Ray ends a driver by `_exit(1)` when its raylet is gone, without running anything of Python; SIGKILL is the other
    case. A shell waits for that; where there is none, nothing is said.
    """
    try:
        # In a session of its own, so that what ends this process group does not end the witness.
        watcher = subprocess.Popen(
            ["/bin/sh", "-c", _WATCH, "prdp", text],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=os.name == "posix",
        )
    except OSError:
        yield
        return

    def leave() -> None:
        with contextlib.suppress(OSError):
            watcher.communicate(b"left\n")

    try:
        with last_act(leave):
            yield
    finally:
        leave()


class NoSilentSuccess:
    """Within the block, have `os._exit(0)` end this process with `code`: whoever called it, the work is not done.

    A context manager, to be entered before any code of others is imported, which may bind the function for itself.
    Forked children keep their exit codes. Native code, and `os.exec...`, that end the program are not seen here.

    Attributes:
        code: 1, until the outcome of the work is known.
    """

    def __init__(self) -> None:
        self.code = 1
        self._plain = os._exit
        self._process: int | None = None

    def __enter__(self) -> NoSilentSuccess:
        self._process = os.getpid()
        for module in _holders():
            module._exit = self._end
        return self

    def __exit__(self, *exception: object) -> None:
        self._process = None
        for module in _holders():
            module._exit = self._plain

    def _end(self, status: int) -> NoReturn:
        self._plain(self.code if status == 0 and os.getpid() == self._process else status)


def _holders() -> tuple[Any, ...]:
    """The module `os`, and the one of the system that it has the function from: posix or nt."""
    return os, sys.modules[os.name]
