"""Rows of tokens that a model reads as they grow, with keys and values of all that it has read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prdp.language.models import LanguageModel, Output


class Reader:
    """What a model has read of a batch. Tokens are computed when an output is asked for, all that are new in one pass.

    Args:
        model: that reads.
        use_cache: whether keys and values are kept; without, every output reads all anew.
    """

    def __init__(self, model: LanguageModel, use_cache: bool = True) -> None:
        self._model, self._use_cache = model, use_cache
        self._cache = None
        self._ids: Tensor | None = None
        self._mask: Tensor | None = None
        self._done = 0
        self.passes = 0
        """Forward passes so far."""
        self.columns = 0
        """Columns of tokens that those passes read."""

    def read(self, ids: Tensor, mask: Tensor) -> None:
        """Add columns [b, n]; `mask` is 0 where one is padding."""
        ids, mask = ids.to(self._model.device), mask.to(self._model.device)
        self._ids = ids if self._ids is None else torch.cat([self._ids, ids], 1)
        self._mask = mask if self._mask is None else torch.cat([self._mask, mask], 1)

    @torch.no_grad()
    def output(self) -> Output:
        """Behind the last column; of every row that is not padding there.

        Raises:
            ValueError: nothing was read since the last output, or at all.
        """
        if self._ids is None or self._mask is None or self._done == self._ids.shape[1]:
            raise ValueError("no token was read since the last output")
        first = self._done if self._use_cache else 0
        output = self._model(self._ids[:, first:], self._mask, self._cache, keeps_cache=self._use_cache, last=True)
        self._cache = output.cache
        self.passes += 1
        self.columns += self._ids.shape[1] - first
        self._done = self._ids.shape[1]
        return output


def left_padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Token rows as ids and mask, int64 [b, n], padded on the left."""
    longest = max(map(len, rows))
    ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def right_padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Token rows as ids and mask, int64 [b, n], padded on the right."""
    longest = max(map(len, rows))
    ids = torch.tensor([list(row) + [pad] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return ids, mask
