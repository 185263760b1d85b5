"""SIGTERM, which schedulers send before they take a machine away, and Ctrl-C: at once, but never in mid-step.

Only the first one raises: what is finished is saved, and actors are let go of, in peace. The second Ctrl-C is answered
by saying so, the third ends the process where it stands.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

EXIT_CODE = 128 + signal.SIGTERM
"""Of a command that SIGTERM ended: it did not finish, and may be started again."""
LOST_EXIT_CODE = 75
"""Of a command that lost its cluster: it did not finish, and may be started again. EX_TEMPFAIL of sysexits.h."""


class TerminatedError(BaseException):
    """SIGTERM arrived. No `Exception`, so that nobody takes it for a fault that can be borne."""


INTERRUPTED_EXIT_CODE = 128 + signal.SIGINT
"""Of a command that Ctrl-C ended."""

_STOPPING = b"\nprdp: is stopping, and keeps what is finished; Ctrl-C once more ends it at once\n"
_AT_ONCE = b"\nprdp: ended at once\n"
_SHOW_CURSOR = b"\x1b[?25h"

_blocks = 0
_depth = 0
_waiting: BaseException | None = None
_stopping = False
_insisted = 0
_last_acts: list[Callable[[], None]] = []


@contextlib.contextmanager
def interruptions_raised() -> Iterator[None]:
    """Let SIGTERM raise `TerminatedError` and SIGINT `KeyboardInterrupt` in the main thread during the block, once.

    A signal that is ignored, as SIGINT is in the background of a shell script, stays ignored.
    """
    global _blocks, _stopping, _insisted
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = [number for number in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, _arrived) for number in heard}
    _blocks += 1
    try:
        yield
    finally:
        _blocks -= 1
        if not _blocks:
            _stopping, _insisted = False, 0
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Put an interruption off until the block ends: it changes what must change as a whole.

    In the main thread, where interruptions arrive. A block of another one ends by itself.
    """
    global _depth, _waiting
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        if not _depth and _waiting is not None:
            error, _waiting = _waiting, None
            raise error


@contextlib.contextmanager
def last_act(act: Callable[[], None]) -> Iterator[None]:
    """Have this done when the process is ended at once within the block: quickly, and without an error."""
    _last_acts.append(act)
    try:
        yield
    finally:
        _last_acts.remove(act)


def always_last(act: Callable[[], None]) -> None:
    """As `last_act`, until the process ends."""
    if act not in _last_acts:
        _last_acts.append(act)


def _arrived(number: int, frame: FrameType | None) -> None:
    global _waiting, _stopping
    if _stopping:
        if number == signal.SIGINT:
            _insist()
        return
    _stopping = True
    error = TerminatedError() if number == signal.SIGTERM else KeyboardInterrupt()
    if _depth:
        _waiting = error
    else:
        raise error


def _insist() -> None:
    """Past buffers and locks, which the interrupted code may be in the middle of."""
    global _insisted
    _insisted += 1
    if _insisted == 1:
        _tell(2, _STOPPING)
        return
    _tell(2, _AT_ONCE)
    if sys.__stdout__ is not None and sys.__stdout__.isatty():
        _tell(1, _SHOW_CURSOR)  # which progress bars hide
    for act in _last_acts:
        act()
    os._exit(INTERRUPTED_EXIT_CODE)


def _tell(file: int, text: bytes) -> None:
    with contextlib.suppress(OSError):
        os.write(file, text)
