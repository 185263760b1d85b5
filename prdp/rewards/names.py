"""Names of sub-scores: which are taken, and what a name may look like."""

from __future__ import annotations

import re
from collections.abc import Iterable

_REWARD = ("mean", "std", "group_std")
_EVALUATION = ("score", "score_low", "score_high", "diversity")
_TABLES = ("watch", "pictures", "total", "epoch", "prompt")
RESERVED = frozenset({*_REWARD, *_EVALUATION, *_TABLES})
"""Names that logs, reports and tables use for the reward itself; neither case nor punctuation tells others apart."""
MOST = 256
"""Sub-scores of one reward; each is a curve in every log."""
LONGEST = 200
"""Characters of a name."""


def check_names(reward: str, names: Iterable[object], composite: bool = False) -> None:
    """Refuse sub-scores whose names are taken or cannot stand in logs.

    Args:
        reward: what gave them, for messages, such as "reward 'mine'".
        names: as given.
        composite: the reward is made of others, whose sub-scores have paths for names: 'aesthetic', 'watch/hpsv2' or
            'first/part'.

    Raises:
        ValueError: by the name.
    """
    listed = list(names)
    if len(listed) > MOST:
        raise ValueError(f"{reward} gives {len(listed)} sub-scores, at most {MOST} are logged")
    for name in listed:
        if composite and isinstance(name, str) and f"watch/{name}" in listed:
            raise ValueError(f"{reward} gives a sub-score {shown(name)} as well as one that is only watched")
        problem = _problem(name, composite)
        if problem:
            raise ValueError(f"{reward} gives a sub-score {shown(name)}: {problem}")


def taken(name: str) -> bool:
    """Whether a name is reserved, or differs from one that is by case and punctuation alone."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") in RESERVED


def shown(name: object) -> str:
    """A name as a message may show it."""
    text = repr(name)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _problem(name: object, composite: bool) -> str | None:
    if not isinstance(name, str):
        return "a name must be a text"
    if len(name) > LONGEST:
        return f"a name may have {LONGEST} characters"
    if composite:
        name = name.removeprefix("watch/")
    parts = name.split("/") if composite else [name]
    if not all(part and part.isprintable() and part == part.strip() for part in parts):
        return "a name must be printable, not empty, and without blanks at its ends"
    if "/" in parts[0]:
        return "a name may hold no '/', which separates the terms of a weighted sum"
    if taken(parts[0]):
        return f"the name is taken; logs and tables use {', '.join(sorted(RESERVED))} themselves"
    return None
