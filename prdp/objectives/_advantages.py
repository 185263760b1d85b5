"""Advantages: rewards centred and scaled by their group, by the batch, or by the latest rewards of their prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from prdp.objectives._groups import group_mean, tied_groups

if TYPE_CHECKING:
    import torch

Std = Literal["group", "batch", "none"]
"""What centred rewards are divided by: the spread of their group, that of the whole batch, or nothing."""

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
) -> GroupAdvantages:
    """Rewards minus the mean of their group, divided by a spread, and clipped.

    Args:
        rewards: raw, [n].
        group_ids: int64 [n], equal for images of one prompt.
        std: what they are divided by.
        clip: largest absolute advantage.
        drop_tied: whether images of groups whose rewards are all equal, which have nothing to tell, are left out of
            `counted`, and so of the mean of a loss.
    """
    tied = tied_groups(rewards, group_ids)
    values = _standardised(rewards, group_ids, tied, std).clamp(-clip, clip)
    return GroupAdvantages(
        values, ~tied if drop_tied else tied.new_ones(tied.shape), {"groups_tied": float(len(group_ids[tied].unique()))}
    )


def mean_over(values: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Mean of the counted images' values, a scalar; 0, and differentiable, where none is counted.

    Args:
        values: [n, ...].
        counted: bool [n].
    """
    return values[counted].mean() if counted.any() else 0.0 * values.sum()


def running_advantages(
    rewards: torch.Tensor, history: torch.Tensor, min_count: int, advantage_clip: float
) -> tuple[torch.Tensor, dict[str, float]]:
    """Rewards standardised by the latest rewards of their own prompt, or by the batch's where those are too few.

    Args:
        rewards: [n].
        history: the latest rewards of each image's prompt, this batch's among them, [n, H]; NaN where there is none.
        min_count: how many rewards a prompt needs for statistics of its own.
        advantage_clip: largest absolute advantage.

    Returns:
        advantages [n], and {"batch_normalised": share of images that the batch's statistics were used for}.
    """
    own = (~history.isnan()).sum(1) >= min_count
    mean = history.nanmean(1).where(own, rewards.mean())
    spread = (history - mean[:, None]).square().nanmean(1).sqrt().where(own, rewards.std(correction=0))
    advantages = ((rewards - mean) / (spread + 1e-6)).clamp(-advantage_clip, advantage_clip)
    return advantages, {"batch_normalised": 1.0 - own.double().mean().item()}


def _standardised(rewards: torch.Tensor, group_ids: torch.Tensor, tied: torch.Tensor, std: Std) -> torch.Tensor:
    # Of equal rewards the mean need not be the reward, for rounding.
    centred = (rewards - group_mean(rewards, group_ids)).where(~tied, rewards.new_zeros(()))
    if std == "none":
        return centred
    scale = group_mean(centred.square(), group_ids).sqrt() if std == "group" else rewards.std(correction=0)
    return centred / (scale + _LEAST)
