"""Prompts that are equal but for case, punctuation, spaces and accents' encoding; near ones are `near_duplicates`'."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from prdp.prompts.near_duplicates import Bounded, near_pairs


class Match(NamedTuple):
    """A prompt that another one makes superfluous.

    Attributes:
        row: of the prompt.
        repeats: row of the prompt it repeats.
        reason: 'exact' (equal text), 'normalised' (equal but for case, punctuation and spaces), or 'near'.
        similarity: 1 unless near.
    """

    row: int
    repeats: int
    reason: str
    similarity: float


class _ToSpaces(dict[int, str]):
    """For `str.translate`: punctuation, separators and control characters become spaces; filled as letters occur."""

    def __missing__(self, code: int) -> str:
        self[code] = " " if unicodedata.category(chr(code))[0] in "PZC" else chr(code)
        return self[code]


_TO_SPACES = _ToSpaces()


def normalise(text: str) -> str:
    """Lower case, compatibility forms composed, every run of punctuation and spaces one space.

    A text of punctuation alone keeps it.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = folded.translate(_TO_SPACES).split()
    return " ".join(words or folded.split())


def find_duplicates(texts: Sequence[str], threshold: float | None = 0.85) -> tuple[list[Match], Bounded]:
    """What to drop so that no kept prompt repeats an earlier kept one.

    Args:
        texts: in order of preference: of two alike the earlier stays.
        threshold: similarity from which two are near duplicates, see `near_pairs`; None looks for equal ones only.

    Returns:
        One match for each prompt to drop, by row, each naming a prompt that stays; and the bound of the near search.
    """
    normal = [normalise(text) for text in texts]
    matches: dict[int, Match] = {}
    first: dict[str, int] = {}
    for index, key in enumerate(normal):
        earlier = first.setdefault(key, index)
        if earlier != index:
            reason = "exact" if texts[index] == texts[earlier] else "normalised"
            matches[index] = Match(index, earlier, reason, 1.0)
    bounded = Bounded(0, 0)
    if threshold is not None:
        distinct = list(first.values())
        pairs, bounded = near_pairs([normal[index] for index in distinct], threshold)
        for left, right, similarity in pairs:
            earlier, later = distinct[left], distinct[right]
            if earlier not in matches and later not in matches:
                matches[later] = Match(later, earlier, "near", similarity)
        # What repeats a prompt that has gone itself repeats the one that stayed instead.
        for index, match in matches.items():
            if match.repeats in matches:
                stayed = matches[match.repeats]
                matches[index] = match._replace(repeats=stayed.repeats, reason="near", similarity=stayed.similarity)
    return [matches[index] for index in sorted(matches)], bounded


def find_leaks(
    texts: Sequence[str], held_out: Sequence[str], threshold: float | None = 0.85
) -> tuple[list[Match], Bounded]:
    """Training prompts that repeat a held-out one; `repeats` counts in `held_out`, the most similar is named.

    Arguments as for `find_duplicates`.
    """
    known: dict[str, int] = {}
    for index, text in enumerate(held_out):
        known.setdefault(normalise(text), index)
    matches: dict[int, Match] = {}
    rest: list[int] = []
    normal = [normalise(text) for text in texts]
    for index, key in enumerate(normal):
        if key in known:
            reason = "exact" if texts[index] == held_out[known[key]] else "normalised"
            matches[index] = Match(index, known[key], reason, 1.0)
        else:
            rest.append(index)
    bounded = Bounded(0, 0)
    if threshold is not None and known and rest:
        pairs, bounded = near_pairs([*known, *(normal[index] for index in rest)], threshold, across=len(known))
        origin = list(known.values())
        for left, right, similarity in pairs:
            index = rest[right - len(known)]
            if index not in matches or similarity > matches[index].similarity:
                matches[index] = Match(index, origin[left], "near", similarity)
    return [matches[index] for index in sorted(matches)], bounded


def text_digest(text: str, seed: int) -> int:
    """64 bits from the normalised text and a seed, the same on every machine."""
    digest = hashlib.blake2b(f"{seed}|{normalise(text)}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def held_out_rows(texts: Iterable[str], count: int, seed: int) -> list[int]:
    """Rows of the `count` prompts with the smallest digests, in order; all rows of equal prompts go together.

    Whether a prompt is held out depends on its text, not on its place, so a grown list keeps most of its split.

    Raises:
        ValueError: `count` is below 1, or leaves no prompt on the other side.
    """
    digests = [text_digest(text, seed) for text in texts]
    if not 1 <= count < len(digests):
        raise ValueError(f"{count} prompts to hold out, expected 1 to {len(digests) - 1}: there are {len(digests)}")
    limit = sorted(digests)[count - 1]
    rows = [index for index, digest in enumerate(digests) if digest <= limit]
    if len(rows) == len(digests):
        raise ValueError("equal prompts go to one side together, and none would be left to train on")
    return rows
