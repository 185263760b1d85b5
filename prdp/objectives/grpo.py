"""Flow-GRPO (Liu et al., 2025, arXiv 2505.05470): group-relative advantages, and the KL as a term of the loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prdp.objectives._advantages import Std, group_advantages, mean_over
from prdp.objectives._knobs import NotNegative, Positive
from prdp.objectives._policy_gradient import clipped_surrogate

if TYPE_CHECKING:
    import torch


def grpo(
    log_importance: torch.Tensor,
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
    """The clipped surrogate of group-standardised rewards, plus beta times the KL of each step to the reference.

    Args:
        log_importance: log pi_theta / pi_old of each step, of the policy now and the one that sampled, [n, T].
        kl_ref: ||mu_theta - mu_ref||^2 / (2 sigma^2) of each step, mean over latent dims, [n, T]; None, and not
            computed, where beta is 0.
        rewards: raw, [n].
        group_ids: int64 [n], equal for images of one prompt.
        reward_terms: of a weighted sum, [n, M]; None where `normalise_terms` is false.
        reward_weights: of these terms, [M]; likewise.
        beta: KL weight. The authors divide by the diffusion coefficient where the step's sigma is that times the root
            of the step's size, so their KL is the exact one times the step's size, about 1 / T: their 0.04 at 10 steps
            is about 0.004 here.
        clip_range: of the ratio around 1; None for no clip.
        advantage_clip: largest absolute advantage.
        std: what the group's centred rewards are divided by: the group's own spread, that of the whole batch, or
            nothing.
        drop_tied: whether the mean, of the KL too, leaves out images of groups whose rewards are all equal.
        normalise_terms: whether the terms of a weighted sum are standardised each by itself, and then summed.

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
    terms, beyond = clipped_surrogate(log_importance, advantages, clip_range)
    loss = mean_over(terms, counted)
    if kl_ref is not None:
        loss = loss + beta * mean_over(kl_ref, counted)
    return loss, counts | {"clipfrac": beyond.double().mean().item()}
