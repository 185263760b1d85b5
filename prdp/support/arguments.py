"""Arguments of constructors that a configuration gives, checked by name."""

from __future__ import annotations

from typing import Any


def check_argument(name: str, value: Any, allowed: bool, words: str) -> None:
    """Raise ValueError unless `allowed`.

    Args:
        words: go on a sentence that begins with 'must be'.
    """
    if not allowed:
        raise ValueError(f"{name}={value}: must be {words}")
