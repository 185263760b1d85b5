"""Whether two tokenizers are one: log-probabilities and tokens of one model mean nothing to a model with others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from prdp.support.errors import StartError

PROBES = (
    "The quick  brown fox, aged 12,\n\tcan't jump: 3.14 == x**2!",
    "\u00c9COLE \u00fcber na\u00efve \u0444\u043e\u043d \u6771\u4eac \U0001f642",
)
"""Cut by every two tokenizers that are to be one: case, white space, digits, accents and scripts tell rules apart."""
_OWN_WORDS = 40
"""Of the vocabulary, which are cut too, in upper case: a tokenizer of few words knows none of those above."""


def difference(one: Any, other: Any, texts: Sequence[str] = ()) -> str | None:
    """The first difference of two tokenizers; None where there is none.

    Args:
        one, other: of transformers.
        texts: cut into tokens by both, beside `PROBES`, since equal vocabularies may be used differently: other merges,
            or no token that begins texts.
    """
    left, right = (_by_number(tokenizer) for tokenizer in (one, other))
    for number in sorted({*left, *right}):
        if left.get(number) != right.get(number):
            return f"token {number} is {_shown(left.get(number))} here and {_shown(right.get(number))} there"
    for name in ("bos_token_id", "eos_token_id"):
        if getattr(one, name) != getattr(other, name):
            return f"{name} is {getattr(one, name)} here and {getattr(other, name)} there"
    for text in (*texts, *_probes(one)):
        cut = [tokenizer(text)["input_ids"] for tokenizer in (one, other)]
        if cut[0] != cut[1]:
            equal = [one == other for one, other in zip(*cut, strict=False)]
            place = equal.index(False) if False in equal else len(equal)
            return f"{text[:80]!r} is cut differently from token {place} on, {cut[0][place:][:4]}, {cut[1][place:][:4]}"
    return None


def check_same(base: str, one: Any, assistant: str, other: Any) -> None:
    """Refuse models whose tokenizers differ.

    Args:
        base, assistant: what the models are called.
        one, other: as of `difference`.

    Raises:
        StartError: with the first difference.
    """
    found = difference(one, other)
    if found is not None:
        raise StartError(f"the tokenizers of {base} and {assistant} differ, and they cannot write together: {found}")


def tokenizer_digest(tokenizer: Any) -> str:
    """Of the vocabulary, the tokens that begin and end texts, and how `PROBES` are cut: 16 hex digits."""
    cuts = [tokenizer(text)["input_ids"] for text in _probes(tokenizer)]
    content = [sorted(_by_number(tokenizer).items()), tokenizer.bos_token_id, tokenizer.eos_token_id, cuts]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _probes(tokenizer: Any) -> tuple[str, ...]:
    """Of equal vocabularies equal texts."""
    words = [token for _, token in sorted(_by_number(tokenizer).items())]
    own = " ".join(words[:: max(1, len(words) // _OWN_WORDS)])
    return (*PROBES, own.upper())


def _by_number(tokenizer: Any) -> dict[int, str]:
    return {number: token for token, number in tokenizer.get_vocab().items()}


def _shown(token: str | None) -> str:
    return "missing" if token is None else repr(token)
