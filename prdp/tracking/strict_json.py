"""Numbers as strict JSON: NaN and infinities are the strings "NaN", "Infinity" and "-Infinity"."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any

from prdp.support.json_lines import json_line

_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def strict_json(value: Any) -> Any:
    """Plain containers that strict JSON can hold: NaN and infinities become strings, numpy scalars numbers."""
    if isinstance(value, Mapping):
        return {str(key): strict_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict_json(item) for item in value]
    if isinstance(value, numbers.Real) and not isinstance(value, bool | int):
        number = float(value)
        if math.isnan(number):
            return "NaN"
        if math.isinf(number):
            return "Infinity" if number > 0 else "-Infinity"
        return int(number) if isinstance(value, numbers.Integral) else number
    return value


def from_strict_json(value: Any) -> Any:
    """Inverse of `strict_json` for numbers."""
    if isinstance(value, dict):
        return {key: from_strict_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [from_strict_json(item) for item in value]
    return _SPECIAL.get(value, value) if isinstance(value, str) else value


def dump(row: Mapping[str, Any]) -> str:
    """One line of strict JSON, with its end."""
    return json_line(strict_json(row))
