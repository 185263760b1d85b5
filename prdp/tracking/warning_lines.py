"""Warnings of the program as lines of a run's `progress.log`, so that they stay in its folder."""

from __future__ import annotations

import logging
from collections.abc import Callable

MARK = "WARNING "
"""What such a line begins with."""


class WarningLines(logging.Handler):
    """Hands on what is logged under 'prdp' as a warning or worse.

    Python shows warnings on standard error where no handler is set. It still does: this one calls what Python would.
    """

    def __init__(self, record_line: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._record_line = record_line
        self._recording = False

    def emit(self, record: logging.LogRecord) -> None:
        """Hand one message on."""
        if not self._recording:  # or a line that cannot be written would be warned of without end
            self._recording = True
            try:
                self._record_line(MARK + record.getMessage())
            finally:
                self._recording = False
        if not logging.getLogger().handlers and logging.lastResort is not None and self._is_first():
            logging.lastResort.handle(record)

    def _is_first(self) -> bool:
        own = [one for one in logging.getLogger("prdp").handlers if isinstance(one, WarningLines)]
        return own[:1] == [self]
