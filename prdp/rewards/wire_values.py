"""Values of a body from elsewhere, checked one by one: names, numbers, plain facts."""

from __future__ import annotations

import math
import reprlib
from typing import Any

MAX_NAME = 4096
"""Characters of the name or version of a reward, or of a sub-score's name, that come from elsewhere."""


class WireError(ValueError):
    """A body that does not follow the format; the message names the field, what it holds and what was expected."""


def name_of(value: Any, what: str) -> str:
    """A text that logs and metric names can hold."""
    if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= MAX_NAME:
        raise WireError(f"{what} is {short(value)}, expected a line of at most {MAX_NAME} printable characters")
    return value


def numbers_of(values: Any, what: str, null: bool = False) -> list[float]:
    """A list of numbers; `null` tells whether null may stand among them, for NaN."""
    if not isinstance(values, list):
        raise WireError(f"{what} is {short(values)}, expected a list of numbers")
    try:
        return [math.nan if null and value is None else _number(value) for value in values]
    except (TypeError, OverflowError):
        raise WireError(f"{what} is {short(values)}, expected a list of numbers") from None


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    return float(value)


def told(value: Any, where: str, depth: int) -> Any:
    """Plain values that logs and checkpoints can hold."""
    if isinstance(value, dict) and depth:
        return {name_of(key, f"a key of {where}"): told(one, f"{where}.{key}", depth - 1) for key, one in value.items()}
    if isinstance(value, list) and depth:
        return [told(one, f"{where}[{index}]", depth - 1) for index, one in enumerate(value)]
    if isinstance(value, str) and value:
        return name_of(value, where)
    if value is None or value == "" or (isinstance(value, int | float) and abs(value) < 1e300):
        return value
    raise WireError(f"{where} is {short(value)}, expected a short text or a number, not too deep")


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlist, _SHORT.maxdict = 3, 60, 60, 8, 4


def short(value: Any) -> str:
    """The start of a value's repr, at bounded cost however large or deep it is."""
    text = _SHORT.repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
