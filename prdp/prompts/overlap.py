"""Whether a run is judged on prompts that it trains on: counted at its start, by text but for case and punctuation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

from prdp.prompts.duplicates import text_digest
from prdp.prompts.stream import PromptSource, fingerprint, source_texts
from prdp.support.errors import ConfigError

MOST = 5_000_000
"""Training prompts that are looked at; each costs some microseconds."""


class Overlap(NamedTuple):
    """Held-out prompts that are training prompts too.

    Attributes:
        prompts, repeated: in the held-out source, and how many of these are training prompts.
        judged, judged_repeated: the same of the prompts that evaluations use.
        example: one of them, '' where there is none.
    """

    prompts: int
    repeated: int
    judged: int
    judged_repeated: int
    example: str


def check_overlap(train: PromptSource, heldout: PromptSource, judged: Sequence[str], allowed: bool) -> str:
    """Count the held-out prompts that are trained on; a sentence about them, '' where there are none.

    Args:
        judged: the held-out prompts that evaluations use.
        allowed: `prompts.heldout_may_overlap`.

    Raises:
        ConfigError: all that evaluations use are trained on, and that is not allowed.
    """
    found = count_overlap(train, heldout, judged)
    if not found.repeated:
        return ""
    some = f"{found.judged_repeated:,} of the {found.judged:,} held-out prompts that evaluations use"
    if found.judged_repeated == found.judged and not allowed:
        raise ConfigError(
            f"prompts.heldout: all {found.judged:,} prompts that evaluations use are training prompts too, such as "
            f"{found.example!r}; name others (`prdp prompts split` sets some aside), or set "
            "prompts.heldout_may_overlap=true for a run that is to be judged on its training prompts"
        )
    whole = f", and {found.repeated:,} of all {found.prompts:,}" if found.prompts != found.judged else ""
    told = f"{some}{whole} are training prompts too, such as {found.example!r}"
    if allowed:
        return f"{told}, as prompts.heldout_may_overlap=true allows"
    return f"warning: {told}; `prdp prompts leakage` removes them"


_counted: dict[tuple[str, str, tuple[str, ...]], Overlap] = {}
"""By the fingerprints: the check before a start and the start itself, and the jobs of a sweep, count once."""


def count_overlap(train: PromptSource, heldout: PromptSource, judged: Sequence[str]) -> Overlap:
    """The overlap of two sources, equal texts after `normalise`; of more than `MOST` training prompts, the first.

    Args:
        judged: prompts of the held-out source.
    """
    if hasattr(heldout, "is_disjoint") and heldout.is_disjoint(train):
        return Overlap(len(heldout), 0, len(judged), 0, "")
    key = fingerprint(train), fingerprint(heldout), tuple(judged)
    if key in _counted:
        return _counted[key]
    found = _count(train, heldout, judged)
    if all(key[:2]):
        _counted[key] = found
    return found


def _count(train: PromptSource, heldout: PromptSource, judged: Sequence[str]) -> Overlap:
    known: Counter[int] = Counter()
    texts: dict[int, str] = {}
    for text in source_texts(heldout):
        digest = text_digest(text, 0)
        known[digest] += 1
        texts.setdefault(digest, text)
    repeated = known.keys() & {text_digest(text, 0) for text in islice(source_texts(train), MOST)}
    hits = [digest for text in judged if (digest := text_digest(text, 0)) in repeated]
    example = texts[hits[0]] if hits else texts[min(repeated)] if repeated else ""
    return Overlap(len(heldout), sum(known[digest] for digest in repeated), len(judged), len(hits), example)
