"""GRPO-Guard (Wang et al., 2025, arXiv 2510.22319): ratios without bias, of one scale at every step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prdp.objectives._advantages import Std, group_advantages, mean_over
from prdp.objectives._knobs import NotNegative, Positive
from prdp.objectives._policy_gradient import clipped_surrogate

if TYPE_CHECKING:
    import torch


def grpo_guard(
    guarded_importance: torch.Tensor,
    step_size: torch.Tensor,
    kl_ref: torch.Tensor | None,
    rewards: torch.Tensor,
    group_ids: torch.Tensor,
    reward_terms: torch.Tensor | None,
    reward_weights: torch.Tensor | None,
    *,
    beta: NotNegative = 0.0,
    clip_range: Positive | None = 2e-6,
    advantage_clip: Positive = 5.0,
    std: Std = "group",
    drop_tied: bool = False,
    normalise_terms: bool = False,
) -> tuple[torch.Tensor, dict[str, float]]:
    """The clipped surrogate of guarded ratios, divided by the size of each step.

    Args:
        guarded_importance: sigma mean(z d) of each step, [n, T]: the log-ratio to the policy that sampled, plus the KL
            to it, which is minus its expectation, times sigma.
        step_size: of each step, sigma - sigma' of a flow, [n, T].
        kl_ref, rewards, group_ids, reward_terms, reward_weights, beta, advantage_clip, std,
            drop_tied, normalise_terms: as in `grpo`.
        clip_range: of the guarded ratio around 1; None for no clip.

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
    terms, beyond = clipped_surrogate(guarded_importance, advantages, clip_range)
    loss = mean_over(terms / step_size, counted)
    if kl_ref is not None:
        loss = loss + beta * mean_over(kl_ref, counted)
    return loss, counts | {"clipfrac": beyond.double().mean().item()}
