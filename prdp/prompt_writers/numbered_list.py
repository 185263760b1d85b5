"""What a writer answers: a list whose lines are numbered."""

from __future__ import annotations

import re
from dataclasses import dataclass

_ITEM = re.compile(r"\s*(?:[-*#]\s+)?(\d{1,6})\s*[.):]\s*(.*)")
_QUOTES = (('"', '"'), ("“", "”"), ("'", "'"))
LARGEST_STEP = 20
"""A number that is larger than the last one by more is part of a text, such as a year."""


@dataclass(frozen=True)
class Parsed:
    """Items of an answer.

    Attributes:
        texts: of the items, in order; without quotes around them and marks of bold type, blanks as single
            spaces.
        stray: lines that are none: without a number, or with one that is not the next.
    """

    texts: tuple[str, ...]
    stray: int


def parse_list(answer: str, first: int, cut: bool = False) -> Parsed:
    """The items 'k. text' of an answer, with numbers that grow from `first`; a number may be left out.

    Args:
        answer: of the writer.
        first: the number that it was to continue at. Items with lower ones repeat what it was shown.
        cut: whether the writer was cut off, so that its last line is not whole.
    """
    lines = [line for line in answer.splitlines() if line.strip()]
    if cut:
        lines = lines[:-1]
    texts, last = [], first - 1
    for line in lines:
        found = _ITEM.fullmatch(line.replace("**", ""))
        if found is None or not last < int(found[1]) <= last + LARGEST_STEP:
            continue
        last = int(found[1])
        texts.append(_bare(found[2]))
    return Parsed(tuple(texts), len(lines) - len(texts))


def _bare(text: str) -> str:
    text = " ".join(text.split())
    for left, right in _QUOTES:
        inner = text[len(left) : -len(right)]
        if len(text) > len(left) + len(right) and text == f"{left}{inner}{right}" and left not in inner:
            return inner.strip()
    return text
