"""Warnings of the program, caught so that an actor can send them to the driver."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Self


class WarningCollector(logging.Handler):
    """Within the block, collects what is logged under 'prdp' as a warning or worse."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._texts: list[str] = []

    @property
    def texts(self) -> tuple[str, ...]:
        """The messages so far, in order."""
        return tuple(self._texts)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one message."""
        self._texts.append(record.getMessage())

    def __enter__(self) -> Self:
        logging.getLogger("prdp").addHandler(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        logging.getLogger("prdp").removeHandler(self)
