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


def tied_groups(values: torch.Tensor, group_ids: torch.Tensor) -> torch.Tensor:
    """Whether all values of an image's group are equal, bool [n], for values [n] and group ids int64 [n]."""
    _, inverse, counts = group_ids.unique(return_inverse=True, return_counts=True)
    least, most = (
        values.new_zeros(len(counts)).scatter_reduce(0, inverse, values, reduce, include_self=False)
        for reduce in ("amin", "amax")
    )
    return (least == most)[inverse]


def by_group(values: torch.Tensor, group_ids: torch.Tensor) -> torch.Tensor:
    """Values [n, ...] as [G, B, ...]: a row for each group, its images in the order of the batch.

    Raises:
        ValueError: groups of unequal size.
    """
    _, counts = group_ids.unique(return_counts=True)
    if (counts != counts[0]).any():
        raise ValueError(f"groups of {counts.min()} to {counts.max()} images, expected all of one size")
    return values[group_ids.argsort(stable=True)].unflatten(0, (len(counts), -1))


def differences(values: torch.Tensor) -> torch.Tensor:
    """Between all images of each group: [G, B, ...] to [G, B, B, ...], entry (i, j) being value i - value j."""
    return values[:, :, None] - values[:, None, :]


def mean_of_groups(values: torch.Tensor, counted: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Mean of the counted values of each group, then of the groups that have any; and how many groups have none.

    Args:
        values: [G, ...].
        counted: bool of the same shape.

    Returns:
        a scalar, 0 where nothing is counted, and a number of groups.
    """
    counts = counted.flatten(1).sum(1)
    some = counts > 0
    sums = values.where(counted, values.new_zeros(())).flatten(1).sum(1)
    return (sums[some] / counts[some]).sum() / max(int(some.sum()), 1), int((~some).sum())


def paired(values: torch.Tensor, pairs: Pairs) -> torch.Tensor:
    """Which images of a group are compared with each other, bool [B, B], symmetric.

    Images of a group are independent draws, so which of them meet is arbitrary: 'all' meet, 'disjoint' pairs take
    neighbours, (1, 2), (3, 4) and so on, and 'one' pair is the first two images.

    Args:
        values: of the groups' images, [G, B]; only their number counts.
    """
    place = values.new_tensor(range(values.shape[1]))
    together = place[:, None] != place[None, :]
    if pairs != "all":
        together &= (place[:, None] / 2).floor() == (place[None, :] / 2).floor()
    if pairs == "one":
        together &= (place < 2)[:, None]
    return together
