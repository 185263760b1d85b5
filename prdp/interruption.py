"""SIGTERM, which schedulers send before they take a machine away, and Ctrl-C: at once, but never in mid-step."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

EXIT_CODE = 128 + signal.SIGTERM
"""Of a command that SIGTERM ended: it did not finish, and may be started again."""
LOST_EXIT_CODE = 75
"""Of a command that lost its cluster: it did not finish, and may be started again. EX_TEMPFAIL of sysexits.h."""


class TerminatedError(BaseException):
    """SIGTERM arrived. No `Exception`, so that nobody takes it for a fault that can be borne."""


_depth = 0
_waiting: BaseException | None = None


@contextlib.contextmanager
def interruptions_raised() -> Iterator[None]:
    """Let SIGTERM raise `TerminatedError` and SIGINT `KeyboardInterrupt` in the main thread during the block.

    A signal that is ignored, as SIGINT is in the background of a shell script, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = [number for number in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, _arrived) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Put an interruption off until the block ends: it changes what must change as a whole."""
    global _depth, _waiting
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        if not _depth and _waiting is not None:
            error, _waiting = _waiting, None
            raise error


def _arrived(number: int, frame: FrameType | None) -> None:
    global _waiting
    error = TerminatedError() if number == signal.SIGTERM else KeyboardInterrupt()
    if _depth:
        _waiting = error
    else:
        raise error
