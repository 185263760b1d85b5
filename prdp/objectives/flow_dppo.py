"""Flow-DPPO (Ping et al., 2026, arXiv 2606.11025): a mask by the exact KL of each step instead of a clipped ratio."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prdp.objectives._advantages import Std, group_advantages, mean_over
from prdp.objectives._knobs import NotNegative, Positive

if TYPE_CHECKING:
    import torch


def flow_dppo(
    log_importance: torch.Tensor,
    kl_old: torch.Tensor,
    kl_ref: torch.Tensor | None,
    rewards: torch.Tensor,
    group_ids: torch.Tensor,
    reward_terms: torch.Tensor | None,
    reward_weights: torch.Tensor | None,
    *,
    kl_threshold: Positive = 1e-5,
    beta: NotNegative = 0.0,
    advantage_clip: Positive = 5.0,
    std: Std = "batch",
    drop_tied: bool = False,
    normalise_terms: bool = False,
) -> tuple[torch.Tensor, dict[str, float]]:
    """The importance-weighted advantage of each step, but of those that have gone far the way it asks for.

    Args:
        log_importance, kl_ref, rewards, group_ids, reward_terms, reward_weights, beta, advantage_clip, std,
            drop_tied, normalise_terms: as in `grpo`.
        kl_old: ||mu_theta - mu_old||^2 / (2 sigma^2) of each step, mean over latent dims, [n, T].
        kl_threshold: from which on a step has gone far.

    Returns:
        the loss, and {"masked": share of steps that are left out, "groups_tied"}.
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
    ratio = log_importance.exp()
    masked = (kl_old >= kl_threshold) & (advantages[:, None] * (ratio - 1.0) > 0)
    loss = mean_over(-(advantages[:, None] * ratio).where(~masked, ratio.new_zeros(())), counted)
    if kl_ref is not None:
        loss = loss + beta * mean_over(kl_ref, counted)
    return loss, counts | {"masked": masked.double().mean().item()}
