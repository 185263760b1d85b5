"""Options of prompt readers come from YAML and command lines, where a number is quickly written for a text."""

from __future__ import annotations

from typing import Any


def check_text(name: str, value: Any, optional: bool = True) -> None:
    """Raises ValueError for what is no text, and for null unless it is `optional`."""
    if not isinstance(value, str) and not (optional and value is None):
        raise ValueError(_message(name, value, "text" + (", or null" if optional else "")))


def check_flag(name: str, value: Any, optional: bool = False) -> None:
    """Raises ValueError for what is neither true nor false, nor null where it is `optional`."""
    if not isinstance(value, bool) and not (optional and value is None):
        raise ValueError(_message(name, value, "true or false" + (", or null" if optional else "")))


def check_texts(name: str, value: Any) -> None:
    """Raises ValueError for what is no list of texts."""
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise ValueError(_message(name, value, "a list of texts"))


def _message(name: str, value: Any, expected: str) -> str:
    return f"prompts {name} is {value!r:.80} ({type(value).__name__}), expected {expected}"
