"""Processes that end without leaving their work in any way: a word about them, and no success for them."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from typing import NoReturn

from prdp.interruption import last_act

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


@contextlib.contextmanager
def no_silent_success() -> Iterator[None]:
    """Within the block, have `os._exit(0)` end this process with 1: whoever called it, the work is not done.

    Forked children keep their exit codes. Native code that ends the process is not seen here.
    """
    plain, process = os._exit, os.getpid()

    def end(code: int) -> NoReturn:
        plain(1 if code == 0 and os.getpid() == process else code)

    os._exit = end  # type: ignore[assignment]
    try:
        yield
    finally:
        os._exit = plain
