"""Who is asked: a larger language model, here or behind an endpoint. Only its tokens and their probabilities count."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from prdp.language.choosing import Chooser
from prdp.language.deferral import gold_log_probs
from prdp.language.models import LanguageModel
from prdp.language.reading import Reader, right_padded
from prdp.language.records import Example


@dataclass(frozen=True)
class Scored:
    """What an assistant says of an answer's tokens, each behind the true ones before it.

    Attributes:
        log_probs: of the answer's tokens, float32 [n].
        tops: its own likeliest tokens there, int32 [n].
    """

    log_probs: np.ndarray
    tops: np.ndarray


class Session(Protocol):
    """An assistant beside a batch of texts that grow.

    Attributes:
        calls: how often each row has asked, [b].
        computed: tokens that it has computed for each row, [b]; of an endpoint, those that it has written.
    """

    calls: np.ndarray
    computed: np.ndarray

    def read(self, ids: Tensor, mask: Tensor) -> None:
        """Add columns [b, n] of tokens; nothing is computed."""
        ...

    def tokens(self, wanted: Tensor, ids: Tensor, chooser: Chooser) -> Tensor:
        """The next token of the rows that want one: int64 [b], of other rows anything.

        Args:
            wanted: bool [b].
            ids: all tokens so far, padding included.
        """
        ...

    def logits(self, wanted: Tensor) -> Tensor:
        """Of the next token, float32 [b, V]; for mixtures of both models' probabilities."""
        ...


class Assistant(Protocol):
    """A model that is asked.

    Attributes:
        name: for tables.
        digest: changes with what it answers.
        limit: tokens that it reads at most; None where that is not known.
        gives_logits: whether its whole distribution is known.
    """

    name: str
    digest: str
    limit: int | None
    gives_logits: bool

    def score(self, examples: Sequence[Example]) -> Iterator[Scored]:
        """Of each example, in order."""
        ...

    def session(self, rows: int) -> Session:
        """For a batch of so many texts."""
        ...


class LocalAssistant:
    """A causal language model of this process, frozen.

    Args:
        model: that is asked.
        name, digest: see `Assistant`.
        limit: tokens that it reads at most.
        batch_size: texts that are scored at a time.
        use_cache: whether sessions keep keys and values.
    """

    gives_logits = True

    def __init__(
        self,
        model: LanguageModel,
        name: str,
        digest: str,
        limit: int | None = None,
        batch_size: int = 8,
        use_cache: bool = True,
    ) -> None:
        self.model, self.name, self.digest, self.limit = model, name, digest, limit
        self._batch_size, self._use_cache = batch_size, use_cache

    def score(self, examples: Sequence[Example]) -> Iterator[Scored]:
        """See `Assistant.score`."""
        for first in range(0, len(examples), self._batch_size):
            yield from self._scored(examples[first : first + self._batch_size])

    def session(self, rows: int) -> Session:
        """See `Assistant.session`."""
        return _LocalSession(Reader(self.model, self._use_cache), rows)

    @torch.no_grad()
    def _scored(self, batch: Sequence[Example]) -> Iterator[Scored]:
        ids, mask = (part.to(self.model.device) for part in right_padded([one.prompt + one.answer for one in batch], 0))
        logits = self.model(ids, mask).logits[:, :-1]
        log_probs, tops = gold_log_probs(logits, ids[:, 1:]).cpu().numpy(), logits.argmax(-1).cpu().numpy()
        for row, one in enumerate(batch):
            answer = slice(len(one.prompt) - 1, len(one.prompt) + len(one.answer) - 1)
            yield Scored(log_probs[row, answer], tops[row, answer].astype(np.int32))


class _LocalSession:
    """All rows are read whenever one asks: rows of one batch have the same columns that are new."""

    def __init__(self, reader: Reader, rows: int) -> None:
        self._reader = reader
        self._waiting = np.zeros(rows, np.int64)
        self.calls, self.computed = np.zeros(rows, np.int64), np.zeros(rows, np.int64)

    def read(self, ids: Tensor, mask: Tensor) -> None:
        self._reader.read(ids, mask)
        self._waiting += mask.sum(1).cpu().numpy()

    def tokens(self, wanted: Tensor, ids: Tensor, chooser: Chooser) -> Tensor:
        return chooser(ids, self.logits(wanted), wanted)

    def logits(self, wanted: Tensor) -> Tensor:
        logits: Any = self._reader.output().logits[:, -1].float()
        self.calls += wanted.cpu().numpy()
        self.computed += self._waiting
        self._waiting[:] = 0
        return logits
