"""Reward-weighted regression: RWR of Black et al. (ICLR 2024, arXiv 2305.13301), after Lee et al. (2302.12192)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from prdp.objectives._groups import by_group
from prdp.objectives._knobs import Positive

if TYPE_CHECKING:
    import torch


def reward_weighted_regression(
    denoising: torch.Tensor,
    rewards: torch.Tensor,
    group_ids: torch.Tensor,
    *,
    temperature: Positive = 0.2,
    normalise: Literal["batch", "group"] = "batch",
) -> tuple[torch.Tensor, dict[str, float]]:
    """Denoising error of the policy's own samples, weighted by exp(reward / temperature) / Z.

    Args:
        denoising: minus the denoising error of each image and draw, [n, D].
        rewards: raw, [n].
        group_ids: int64 [n], equal for images of one prompt.
        temperature: of the weights; the lower, the fewer images count.
        normalise: Z sums over the batch, or over each prompt's group, so that every prompt weighs the same.

    Returns:
        the loss, and {"effective_images": 1 / sum of squared weights}.
    """
    scores = by_group(rewards, group_ids) / temperature
    weights = scores.flatten().softmax(0).view_as(scores) if normalise == "batch" else scores.softmax(1) / len(scores)
    loss = -(weights * by_group(denoising.mean(1), group_ids)).sum()
    return loss, {"effective_images": 1.0 / weights.square().sum().item()}
