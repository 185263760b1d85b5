"""REINFORCE on denoising steps: the score-function estimator DDPO_SF of Black et al. (ICLR 2024, arXiv 2305.13301)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prdp.objectives._advantages import running_advantages
from prdp.objectives._knobs import Count, CountOrZero, Positive

if TYPE_CHECKING:
    import torch


def reinforce(
    log_importance: torch.Tensor,
    rewards: torch.Tensor,
    history: torch.Tensor,
    reward_terms: torch.Tensor | None,
    reward_weights: torch.Tensor | None,
    *,
    advantage_clip: Positive = 10.0,
    buffer_size: CountOrZero = 32,
    min_count: Count = 16,
    normalise_terms: bool = False,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Log-probs weighted by advantages; unbiased for the first update after sampling only.

    Args:
        log_importance: log pi_theta / pi_old, [n, T]; the old policy adds a constant.
        rewards, history, reward_terms, reward_weights, advantage_clip, buffer_size, min_count, normalise_terms: as in
            `ddpo`.

    Returns:
        the loss, and {"batch_normalised": share of images standardised by the batch}.
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
    return -(advantages[:, None] * log_importance).mean(), counts
