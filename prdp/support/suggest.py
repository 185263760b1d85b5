"""The name that was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LIKELY = 0.67
MARGIN = 0.08


def nearest(word: str, candidates: Iterable[str]) -> list[str]:
    """Up to three candidates that resemble a mistyped word, best first; empty when none does.

    Dotted keys count half as a whole and half by their last part, so that 'learning_rat' finds 'learner.learning_rate'
    and a shared section alone finds nothing. Initials count too: 'lr'.
    """
    wanted = word.lower()
    leaf = wanted.rpartition(".")[2]

    def likeness(candidate: str) -> float:
        name = candidate.lower()
        last = name.rpartition(".")[2]
        whole = difflib.SequenceMatcher(None, wanted, name).ratio()
        if len(leaf) > 1 and leaf == "".join(part[:1] for part in last.split("_")):
            return (1 + whole) / 2
        return (difflib.SequenceMatcher(None, leaf, last).ratio() + whole) / 2

    scored = sorted((-likeness(candidate), candidate) for candidate in set(candidates))
    return [candidate for score, candidate in scored[:3] if -score >= max(LIKELY, -scored[0][0] - MARGIN)]


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """A sentence to end a message with, ". Did you mean 'x'?", or an empty string."""
    found = [f"'{name}'" for name in nearest(word, candidates)]
    return f". Did you mean {' or '.join(found)}?" if found else ""
