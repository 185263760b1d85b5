"""What a judge that is a language model has answered: JSON within text, or a line a criterion, whole or refused."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any


def answer_object(answer: str) -> dict[str, Any]:
    """The one JSON object of an answer; words and code fences around it do not count.

    Raises:
        ValueError: none, several, or one that is not whole.
    """
    found: list[dict[str, Any]] = []
    place = answer.find("{")
    while place >= 0:
        try:
            value, end = json.JSONDecoder().raw_decode(answer, place)
        except (ValueError, RecursionError):
            raise ValueError("has a { that begins no whole JSON object") from None
        found.append(value)
        place = answer.find("{", end)
    if len(found) != 1:
        raise ValueError(f"has {len(found) or 'no'} JSON objects, must have one")
    return found[0]


def criteria_scores(answer: str, criteria: Sequence[str]) -> list[float]:
    """The marks of all criteria, in their order, out of a JSON object or of lines such as 'Alignment (1-5): 3.5'.

    Judges that were trained on a format of their own, such as UnifiedReward, write lines whatever they are asked for.

    Raises:
        ValueError: a criterion without a number, or with several, or a name that is none.
    """
    lines = {name: _line(name).findall(answer) for name in criteria}
    if "{" not in answer and any(lines.values()):
        if bad := [name for name, found in lines.items() if len(found) != 1]:
            raise ValueError(f"has {len(lines[bad[0]]) or 'no'} lines with points for {bad[0]}, must have one")
        return [float(lines[name][0]) for name in criteria]
    marks = answer_object(answer)
    if set(marks) != set(criteria):
        raise ValueError(f"has points for {', '.join(marks) or 'nothing'}, must be for {', '.join(criteria)}")
    return [_number(marks[name], name) for name in criteria]


def group_scores(answer: str, count: int) -> list[float]:
    """The marks of the pictures of a group, in their order.

    Raises:
        ValueError: other than one number a picture.
    """
    marks = answer_object(answer).get("scores")
    if not isinstance(marks, list) or len(marks) != count:
        raise ValueError(f"has no list 'scores' of {count} numbers")
    return [_number(mark, f"picture {number}") for number, mark in enumerate(marks, 1)]


def winner(answer: str) -> list[float]:
    """[1, 0], [0, 1] or [1/2, 1/2]: what the first and the second picture of a pair have won.

    Raises:
        ValueError: no word of first, second and equal.
    """
    word = answer_object(answer).get("better")
    won = {"first": [1.0, 0.0], "second": [0.0, 1.0], "equal": [0.5, 0.5]}
    if not isinstance(word, str) or word.strip().lower() not in won:
        raise ValueError(f"says better: {word!r}, must be first, second or equal")
    return won[word.strip().lower()]


def _line(name: str) -> re.Pattern[str]:
    """A line that begins with a name, in any case, perhaps with words after it, and ends with a colon and a number."""
    number = r"(-?\d+(?:\.\d+)?)"
    return re.compile(rf"^\W*{re.escape(name)}(?!\w)[^:\n]*:[ *]*{number}[ *.]*$", re.IGNORECASE | re.MULTILINE)


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"gives {what} {value!r}, must be a number")
    return float(value)
