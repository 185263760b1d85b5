"""Advantage Weighted Matching (Xue et al., 2025, arXiv 2509.25050): policy gradients of denoising errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prdp.objectives._advantages import Std, group_advantages, mean_over
from prdp.objectives._knobs import NotNegative, Positive
from prdp.objectives._policy_gradient import clipped_surrogate

if TYPE_CHECKING:
    import torch


def awm(
    log_importance: torch.Tensor,
    kl_ref: torch.Tensor | None,
    kl_old_policy: torch.Tensor | None,
    rewards: torch.Tensor,
    group_ids: torch.Tensor,
    reward_terms: torch.Tensor | None,
    reward_weights: torch.Tensor | None,
    *,
    beta: NotNegative = 1e-3,
    beta_old: NotNegative = 1.0,
    clip_range: Positive | None = 1.0,
    advantage_clip: Positive = 5.0,
    std: Std = "batch",
    drop_tied: bool = False,
    normalise_terms: bool = False,
) -> tuple[torch.Tensor, dict[str, float]]:
    """The clipped surrogate of each draw, plus squared distances to the outputs of the reference and of the old policy.

    Args:
        log_importance: log-likelihood of each image and draw, minus that of the policy which an epoch's updates start
            from, [n, D]; see `prdp.evidence.DenoisingLikelihood`.
        kl_ref, kl_old_policy: mean over latent dims of the squared difference to the output of the reference, and of
            the moving old policy, [n, D]; None, and not computed, where their weight is 0.
        rewards: raw, [n].
        group_ids: int64 [n], equal for images of one prompt.
        reward_terms, reward_weights, std, drop_tied, normalise_terms: as in `grpo`.
        beta, beta_old: weights of these distances.
        clip_range: of the likelihood's ratio around 1; None for no clip.
        advantage_clip: the advantage that is scaled to 1, the largest there is.

    Returns:
        the loss, and {"clipfrac", "groups_tied": number of prompts whose rewards are all equal}.
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
    terms, beyond = clipped_surrogate(log_importance, advantages / advantage_clip, clip_range)
    loss = mean_over(terms, counted)
    if kl_ref is not None:
        loss = loss + beta * mean_over(kl_ref, counted)
    if kl_old_policy is not None:
        loss = loss + beta_old * mean_over(kl_old_policy, counted)
    return loss, counts | {"clipfrac": beyond.double().mean().item()}
