"""Trying a small piece of work where it would run, before any long work starts."""

from __future__ import annotations

from collections.abc import Callable


def why_not(work: Callable[[], object]) -> str | None:
    """The first line of what a library says when a device cannot do a piece of work; None where it can."""
    try:
        work()
    except (RuntimeError, NotImplementedError, ValueError, OSError) as error:
        return (str(error).splitlines() or [type(error).__name__])[0]
    return None
