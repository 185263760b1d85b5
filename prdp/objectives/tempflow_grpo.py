"""Noise-aware weights of TempFlow-GRPO (He et al., 2025, arXiv 2508.04324), without its branches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prdp.objectives._advantages import Std, group_advantages, mean_over
from prdp.objectives._knobs import NotNegative, Positive
from prdp.objectives._policy_gradient import clipped_surrogate

if TYPE_CHECKING:
    import torch


def tempflow_grpo(
    log_importance: torch.Tensor,
    noise_weight: torch.Tensor,
    kl_ref: torch.Tensor | None,
    rewards: torch.Tensor,
    group_ids: torch.Tensor,
    reward_terms: torch.Tensor | None,
    reward_weights: torch.Tensor | None,
    *,
    beta: NotNegative = 0.004,
    clip_range: Positive | None = 1e-4,
    advantage_clip: Positive = 5.0,
    std: Std = "group",
    drop_tied: bool = False,
    normalise_terms: bool = False,
) -> tuple[torch.Tensor, dict[str, float]]:
    """GRPO whose surrogate of each step, after the clip, is weighted by how much noise the step draws.

    Args:
        log_importance, kl_ref, rewards, group_ids, reward_terms, reward_weights, beta, clip_range, advantage_clip,
            std, drop_tied, normalise_terms: as in `grpo`; the KL has no weight.
        noise_weight: sigma of each step, divided by its mean over the steps that can draw noise, [n, T].

    Returns:
        the loss, and {"clipfrac", "groups_tied"}.
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
    terms, beyond = clipped_surrogate(log_importance, advantages, clip_range)
    loss = mean_over(noise_weight * terms, counted)
    if kl_ref is not None:
        loss = loss + beta * mean_over(kl_ref, counted)
    return loss, counts | {"clipfrac": beyond.double().mean().item()}
