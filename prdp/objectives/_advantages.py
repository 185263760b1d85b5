"""Advantages: rewards centred and scaled by their group, by the batch, or by the latest rewards of their prompt."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from prdp.objectives._groups import group_mean, tied_groups

if TYPE_CHECKING:
    import torch

Std = Literal["group", "pooled", "batch", "none"]
"""What centred rewards are divided by: the spread of their group, that of all centred rewards, that of all raw rewards,
to which the prompts' levels add, or nothing."""

_LEAST = 1e-4
"""Added to the spread of a group or batch, as in the authors' code of Flow-GRPO."""


class GroupAdvantages(NamedTuple):
    """What `group_advantages` gives.

    Attributes:
        values: [n].
        counted: bool [n], the images that a loss goes over, see `mean_over`.
        counts: {"groups_tied": number of prompts whose rewards are all equal}.
    """

    values: torch.Tensor
    counted: torch.Tensor
    counts: dict[str, float]


def group_advantages(
    rewards: torch.Tensor,
    group_ids: torch.Tensor,
    *,
    std: Std = "group",
    clip: float,
    drop_tied: bool = False,
    terms: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
) -> GroupAdvantages:
    """Rewards minus the mean of their group, divided by a spread, and clipped.

    Where the terms of a weighted sum are given, each is centred and divided by itself; their weighted sum is divided by
    its root mean square over the batch, and then clipped.

    Args:
        rewards: raw, [n].
        group_ids: int64 [n], equal for images of one prompt.
        std: what they are divided by.
        clip: largest absolute advantage.
        drop_tied: whether images of groups whose rewards are all equal, which have nothing to tell, are left out of
            `counted`, and so of the mean of a loss. Where terms are given, all of them have to be equal.
        terms: [n, M], what `rewards` is the weighted sum of.
        weights: of the terms, [M].

    References:
        Liu et al., GDPO: Group reward-Decoupled Normalization Policy Optimization, 2026, arXiv:2601.05242.
    """
    parts = [rewards] if terms is None else list(terms.unbind(1))
    ties = [tied_groups(part, group_ids) for part in parts]
    values = [_standardised(part, group_ids, tie, std) for part, tie in zip(parts, ties, strict=True)]
    total = values[0] if weights is None else _combined(values, weights)
    tied = functools.reduce(operator.and_, ties)
    counted = ~tied if drop_tied else tied.new_ones(tied.shape)
    counts = {"groups_tied": float(len(group_ids[tied].unique()))}
    return GroupAdvantages(total.clamp(-clip, clip), counted, counts)


def mean_over(values: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Mean of the counted images' values, a scalar; 0, and differentiable, where none is counted.

    Args:
        values: [n, ...].
        counted: bool [n].
    """
    return values[counted].mean() if counted.any() else 0.0 * values.sum()


def optimality(advantages: torch.Tensor, clip: float) -> torch.Tensor:
    """Advantages within the clip on a scale from 0, bad for certain, to 1, good for certain; [n]."""
    return advantages / (2.0 * clip) + 0.5


def running_advantages(
    rewards: torch.Tensor,
    history: torch.Tensor,
    *,
    buffer_size: int,
    min_count: int,
    clip: float,
    terms: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Rewards standardised by the latest rewards of their own prompt, or by the batch's where those are too few.

    Where the terms of a weighted sum are given, each is standardised by itself, and summed as in `group_advantages`.

    Args:
        rewards: [n].
        history: the latest rewards of each image's prompt, this batch's among them, [n, H], or their terms [n, H, M];
            NaN where there is none.
        buffer_size: how many of them count; 0 standardises by the batch alone.
        min_count: how many rewards a prompt needs for statistics of its own.
        clip: largest absolute advantage.
        terms: [n, M], what `rewards` is the weighted sum of.
        weights: of the terms, [M].

    Returns:
        advantages [n], and {"batch_normalised": share of images that the batch's statistics were used for}.
    """
    latest = history[:, max(history.shape[1] - buffer_size, 0) :]
    if terms is None or weights is None:
        total, own = _by_history(rewards, latest, min_count)
    else:
        columns = zip(terms.unbind(1), latest.unbind(2), strict=True)
        parts = [_by_history(*column, min_count) for column in columns]
        total, own = _combined([values for values, _ in parts], weights), parts[0][1]
    return total.clamp(-clip, clip), {"batch_normalised": 1.0 - own.double().mean().item()}


def _by_history(
    rewards: torch.Tensor, history: torch.Tensor, min_count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    own = (~history.isnan()).sum(1) >= min_count
    mean = history.nanmean(1).where(own, rewards.mean())
    spread = (history - mean[:, None]).square().nanmean(1).sqrt().where(own, rewards.std(correction=0))
    return (rewards - mean) / (spread + 1e-6), own


def _combined(values: Sequence[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
    """The weighted sum, of root mean square 1, or 0 where all is 0."""
    parts = [weight * value for weight, value in zip(weights, values, strict=True)]
    total = functools.reduce(operator.add, parts)
    return total / total.square().mean().sqrt().clamp(min=1e-6)


def _standardised(rewards: torch.Tensor, group_ids: torch.Tensor, tied: torch.Tensor, std: Std) -> torch.Tensor:
    # Of equal rewards the mean need not be the reward, for rounding.
    centred = (rewards - group_mean(rewards, group_ids)).where(~tied, rewards.new_zeros(()))
    if std == "none":
        return centred
    if std == "group":
        return centred / (group_mean(centred.square(), group_ids).sqrt() + _LEAST)
    scale = rewards.std(correction=0) if std == "batch" else centred.square().mean().sqrt()
    return centred / (scale + _LEAST)
