"""From logits to a token, and which of two models writes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from prdp.calibration import Threshold
from prdp.language.deferral import entropy


class Chooser(Protocol):
    """Chooses the next token of rows.

    Attributes:
        temperature: 0 of one that takes the likeliest token.
        top_p: mass of the likeliest tokens that are drawn from.
    """

    temperature: float
    top_p: float

    def __call__(self, ids: Tensor, logits: Tensor, rows: Tensor) -> Tensor:
        """Tokens int64 [b], for the rows of a bool [b]; others get anything.

        Args:
            ids: all tokens before, [b, n].
            logits: of the next, float32 [b, V].
        """
        ...


class Likeliest:
    """Takes the likeliest token."""

    temperature = 0.0
    top_p = 1.0

    def __call__(self, ids: Tensor, logits: Tensor, rows: Tensor) -> Tensor:
        """See `Chooser`."""
        return logits.argmax(-1)


class Sampled:
    """Draws tokens. Every row has a generator of its own, so that neither its batch nor who writes changes its draws.

    Args:
        temperature: above 0; divides the logits.
        top_p: tokens are drawn from the likeliest that have this much probability together.
        seeds: of each row.
    """

    def __init__(self, temperature: float, top_p: float, seeds: Sequence[Sequence[int]]) -> None:
        self.temperature, self.top_p = temperature, top_p
        self._generators = [np.random.default_rng(tuple(seed)) for seed in seeds]

    def __call__(self, ids: Tensor, logits: Tensor, rows: Tensor) -> Tensor:
        """See `Chooser`; draws once for each row that is asked for."""
        wanted = zip(self._generators, rows.tolist(), strict=True)
        share = [generator.random() if one else 0.0 for generator, one in wanted]
        probs, order = torch.softmax(logits.double() / self.temperature, -1).sort(dim=-1, descending=True, stable=True)
        before = probs.cumsum(-1) - probs
        # The likeliest token stays, whatever top_p.
        kept = probs.where(before < self.top_p, 0.0).cumsum(-1)
        drawn = torch.tensor(share, dtype=kept.dtype, device=kept.device)[:, None] * kept[:, -1:]
        place = torch.searchsorted(kept, drawn, right=True).clamp(max=kept.shape[1] - 1)
        return order.gather(-1, place)[:, 0]


class Rule(Protocol):
    """Decides which rows leave their next token to the assistant."""

    def __call__(self, logits: Tensor, deferral: Tensor) -> Tensor:
        """Bool [b].

        Args:
            logits: of the base, float32 [b, V].
            deferral: d, float32 [b]; 0 of a base without the row.
        """
        ...


Score = Callable[[Tensor, Tensor], Tensor]


def deferral_score(logits: Tensor, deferral: Tensor) -> Tensor:
    """Probability that the assistant writes: what eta is a threshold of."""
    return torch.sigmoid(deferral)


def entropy_score(logits: Tensor, deferral: Tensor) -> Tensor:
    """Entropy of the base's next token, which needs no training."""
    return entropy(logits)


SCORES: dict[str, Score] = {"deferral": deferral_score, "entropy": entropy_score}


@dataclass(frozen=True)
class Above:
    """Defers where a score is above a threshold.

    Attributes:
        score: of a base's output.
        threshold: a number, or one that was fitted.
    """

    score: Score
    threshold: float | Threshold

    def __call__(self, logits: Tensor, deferral: Tensor) -> Tensor:
        """See `Rule`."""
        value = self.threshold.value if isinstance(self.threshold, Threshold) else self.threshold
        return self.score(logits, deferral) > value


@dataclass(frozen=True)
class Constant:
    """Defers always, or never: one model alone.

    Attributes:
        defers: which.
    """

    defers: bool

    def __call__(self, logits: Tensor, deferral: Tensor) -> Tensor:
        """See `Rule`."""
        return torch.full_like(deferral, self.defers, dtype=torch.bool)


class AtRandom:
    """Defers with one probability everywhere; every row has a generator of its own.

    Args:
        rate: the probability.
        seeds: of each row.
    """

    def __init__(self, rate: float, seeds: Sequence[Sequence[int]]) -> None:
        self._rate = rate
        self._generators = [np.random.default_rng(tuple(seed)) for seed in seeds]

    def __call__(self, logits: Tensor, deferral: Tensor) -> Tensor:
        """See `Rule`."""
        drawn = [generator.random() < self._rate for generator in self._generators]
        return torch.tensor(drawn, device=deferral.device)
