"""Centered reward distillation (Zhu et al., 2026, arXiv 2603.14128): PRDP's regression, relative to a moving policy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from prdp.objectives._advantages import Std, group_advantages, mean_over, optimality
from prdp.objectives._groups import by_group
from prdp.objectives._knobs import NotNegative, Positive

if TYPE_CHECKING:
    import torch


def crd(
    log_ratio_old_policy: torch.Tensor,
    kl_ref: torch.Tensor | None,
    rewards: torch.Tensor,
    group_ids: torch.Tensor,
    reward_terms: torch.Tensor | None,
    reward_weights: torch.Tensor | None,
    *,
    beta: Positive = 1.0,
    kl: NotNegative = 0.1,
    kl_least: NotNegative = 1e-4,
    advantage_clip: Positive = 5.0,
    std: Std = "batch",
    drop_tied: bool = False,
    normalise_terms: bool = False,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Squared error of log-ratios as predictions of rewards, both relative to the mean of their group.

    Args:
        log_ratio_old_policy: log pi_theta / pi_old of each image and draw, of the moving old policy, [n, D].
        kl_ref: mean over latent dims of the squared difference to the reference's output, [n, D]; None, and not
            computed, where kl is 0.
        rewards: raw, [n].
        group_ids: int64 [n], equal for images of one prompt.
        reward_terms, reward_weights, std, drop_tied, normalise_terms: as in `grpo`.
        beta: weight of the log-ratios; the larger, the nearer to the old policy the optimum is.
        kl: weight of kl_ref where an image is good for certain.
        kl_least: its weight where an image is bad for certain; in between it is interpolated.
        advantage_clip: the advantage at which an image counts as good, or bad, for certain.

    Returns:
        the loss, and {"groups_tied": number of prompts whose rewards are all equal, "prediction_size": root mean square
        of what the log-ratios predict over that of the rewards, as in `prdp`}.
    """
    advantages, counted, counts = group_advantages(
        rewards,
        group_ids,
        std=std,
        clip=advantage_clip,
        drop_tied=drop_tied,
        terms=reward_terms,
        weights=reward_weights,
    )
    good = optimality(advantages, advantage_clip)[:, None].expand_as(log_ratio_old_policy)
    predicted, true = (_centred(values, group_ids) for values in (beta * log_ratio_old_policy, good))
    loss = advantage_clip / beta * mean_over((predicted - true).square(), by_group(counted, group_ids)[:, 0])
    if kl_ref is not None:
        loss = loss + mean_over((kl_least + good * (kl - kl_least)) * kl_ref, counted)
    squares = [values.square().sum().item() for values in (predicted, true)]
    return loss, counts | {"prediction_size": math.sqrt(squares[0] / squares[1]) if squares[1] else 0.0}


def _centred(values: torch.Tensor, group_ids: torch.Tensor) -> torch.Tensor:
    """Values [n, D] minus their mean over the group, at each draw; [G, B, D]."""
    grouped = by_group(values, group_ids)
    return grouped - grouped.mean(1, keepdim=True)
