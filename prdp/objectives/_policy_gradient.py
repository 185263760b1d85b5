"""What the policy-gradient objectives share: the clipped surrogate."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def clipped_surrogate(
    log_importance: torch.Tensor, advantages: torch.Tensor, clip_range: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """PPO's pessimistic surrogate, negated, of every denoising step.

    Args:
        log_importance: log pi_theta / pi_old, [n, T].
        advantages: [n].
        clip_range: of the importance ratio around 1; None for no clip.

    Returns:
        [n, T], and bool [n, T], the ratios beyond the clip range.
    """
    span = math.inf if clip_range is None else clip_range
    ratio = log_importance.exp()
    clipped = ratio.clamp(1.0 - span, 1.0 + span)
    gain = (advantages[:, None] * ratio).minimum(advantages[:, None] * clipped)
    return -gain, (ratio - 1.0).abs() > span
