"""What objectives do with the groups of a batch: means within them, and which of their images make pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Pairs = Literal["all", "disjoint", "one"]


def group_mean(values: torch.Tensor, group_ids: torch.Tensor) -> torch.Tensor:
    """Mean of each image's group, [n], for values [n] and group ids int64 [n]."""
    _, inverse, counts = group_ids.unique(return_inverse=True, return_counts=True)
    return (values.new_zeros(len(counts)).index_add(0, inverse, values) / counts)[inverse]


def paired(values: torch.Tensor, pairs: Pairs) -> torch.Tensor:
    """Which images of one group are compared with each other, bool [B, B], symmetric.

    Images of a group are independent draws, so which of them meet is arbitrary: 'all' meet, 'disjoint' pairs take
    neighbours, (1, 2), (3, 4) and so on, and 'one' pair is the first two images.

    Args:
        values: of the group's images, [B]; only their number counts.
    """
    place = values.new_tensor(range(len(values)))
    together = place[:, None] != place[None, :]
    if pairs != "all":
        together &= (place[:, None] / 2).floor() == (place[None, :] / 2).floor()
    if pairs == "one":
        together &= (place < 2)[:, None]
    return together
