"""Text of strangers on a terminal or in a log: prompts, names, status files and what errors quote of them.

A terminal acts on control characters (colours, its title, its clipboard), and lets overrides of the writing direction
and carriage returns show other text than is there. What is shown are escapes in their place.
"""

from __future__ import annotations

import io
import logging
import sys
import traceback
import unicodedata
from collections.abc import Mapping
from types import TracebackType
from typing import Any

_DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class _Shown(dict[int, str]):
    """For `str.translate`; filled as letters occur."""

    def __missing__(self, code: int) -> str:
        letter = chr(code)
        unsafe = unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") or letter in _DIRECTIONS
        self[code] = letter.encode("unicode_escape").decode("ascii") if unsafe and letter != "\t" else letter
        return self[code]


_ONE_LINE = _Shown()
_LINES = _Shown({ord("\n"): "\n"})


def printable(text: str, lines: bool = False) -> str:
    """The text with control characters (all but the tab), line and paragraph separators, direction marks and halves of
    surrogate pairs as escapes, such as '\\x1b'.

    Args:
        lines: whether line feeds stay.
    """
    return text.translate(_LINES if lines else _ONE_LINE)


def printable_values(value: Any) -> Any:
    """Plain containers with all text in them as one line of `printable`."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {printable_values(key): printable_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [printable_values(item) for item in value]
    return value


class PrintableFormatter(logging.Formatter):
    """Formats records as its base does, and makes them printable."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's text with its line ends."""
        return printable(super().format(record), lines=True)


def make_output_printable() -> None:
    """Show this process's warnings and uncaught errors as `printable` does, unless logging has handlers of its own;
    letters that the encoding of standard output has not become escapes, as they do on standard error.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(PrintableFormatter())
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _show_fault


def _show_fault(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(printable("".join(traceback.format_exception(kind, error, trace)), lines=True))
