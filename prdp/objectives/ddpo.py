"""Denoising diffusion policy optimisation with importance sampling (Black et al., ICLR 2024, arXiv 2305.13301)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prdp.objectives._advantages import running_advantages
from prdp.objectives._knobs import Count, CountOrZero, Positive
from prdp.objectives._policy_gradient import clipped_surrogate

if TYPE_CHECKING:
    import torch


def ddpo(
    log_importance: torch.Tensor,
    rewards: torch.Tensor,
    history: torch.Tensor,
    reward_terms: torch.Tensor | None,
    reward_weights: torch.Tensor | None,
    *,
    clip_range: Positive | None = 1e-4,
    advantage_clip: Positive = 10.0,
    buffer_size: CountOrZero = 32,
    min_count: Count = 16,
    normalise_terms: bool = False,
) -> tuple[torch.Tensor, dict[str, float]]:
    """DDPO_IS: each denoising step is an action, with PPO's clipped importance ratio of its own.

    Args:
        log_importance: log pi_theta / pi_old of each step, of the policy now and the one that sampled, [n, T].
        rewards: raw, [n].
        history: the latest rewards of each image's prompt, these among them, [n, H]; NaN where there is none.
        reward_terms: of a weighted sum, [n, M]; None where `normalise_terms` is false. Else `history` is theirs, too,
            [n, H, M].
        reward_weights: of these terms, [M]; likewise.
        clip_range: of the ratio around 1; None for no clip.
        advantage_clip: largest absolute advantage.
        buffer_size: how many rewards of a prompt count; 0 standardises by the batch alone.
        min_count: prompts with fewer rewards are standardised by the batch.
        normalise_terms: whether the terms of a weighted sum are standardised each by itself, and then summed.

    Returns:
        the loss, and {"clipfrac", "batch_normalised": share of images standardised by the batch}.
    """
    advantages, counts = running_advantages(
        rewards,
        history,
        buffer_size=buffer_size,
        min_count=min_count,
        clip=advantage_clip,
        terms=reward_terms,
        weights=reward_weights,
    )
    terms, beyond = clipped_surrogate(log_importance, advantages, clip_range)
    return terms.mean(), {"clipfrac": beyond.double().mean().item()} | counts
