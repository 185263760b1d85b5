"""What the policy-gradient objectives share: per-prompt advantages and the clipped surrogate."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


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


def clipped_surrogate(
    log_importance: torch.Tensor, advantages: torch.Tensor, clip_range: float | None
) -> tuple[torch.Tensor, dict[str, float]]:
    """PPO's pessimistic surrogate, negated, per denoising step and averaged over images and steps.

    Args:
        log_importance: log pi_theta / pi_old, [n, T].
        advantages: [n].
        clip_range: of the importance ratio around 1; None for no clip.

    Returns:
        the loss, and {"clipfrac": share of ratios beyond the clip range}.
    """
    ratio = log_importance.exp()
    gain = advantages[:, None] * ratio
    if clip_range is None:
        return -gain.mean(), {"clipfrac": 0.0}
    clipped = advantages[:, None] * ratio.clamp(1.0 - clip_range, 1.0 + clip_range)
    return -gain.minimum(clipped).mean(), {"clipfrac": ((ratio - 1.0).abs() > clip_range).double().mean().item()}
