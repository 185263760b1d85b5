"""DiffusionNFT (Zheng et al., 2025, arXiv 2509.16117): rewards weigh a policy's errors against those of its mirror."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prdp.objectives._advantages import Std, group_advantages, mean_over, optimality
from prdp.objectives._knobs import NotNegative, Positive

if TYPE_CHECKING:
    import torch


def nft(
    positive: torch.Tensor,
    negative: torch.Tensor,
    kl_ref: torch.Tensor | None,
    rewards: torch.Tensor,
    group_ids: torch.Tensor,
    reward_terms: torch.Tensor | None,
    reward_weights: torch.Tensor | None,
    *,
    kl: NotNegative = 1e-4,
    advantage_clip: Positive = 5.0,
    std: Std = "batch",
    drop_tied: bool = False,
    normalise_terms: bool = False,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Errors of the positive implicit policy where an image is good, and of the negative one where it is bad.

    With the optimality r of an image, in [0, 1], its loss is -advantage_clip (r positive + (1 - r) negative): half of
    its advantage times -(positive - negative), and a pull to the old policy.

    Args:
        positive, negative: minus the denoising errors of the implicit policies of each image and draw, [n, D]; see
            `prdp.evidence.ImplicitPolicies`.
        kl_ref: mean over latent dims of the squared difference to the reference's output, [n, D]; None, and not
            computed, where kl is 0.
        rewards: raw, [n].
        group_ids: int64 [n], equal for images of one prompt.
        reward_terms, reward_weights, std, drop_tied, normalise_terms: as in `grpo`.
        kl: weight of kl_ref.
        advantage_clip: the advantage at which an image counts as good, or bad, for certain.

    Returns:
        the loss, and {"groups_tied": number of prompts whose rewards are all equal, "certain": share of images whose
        advantage is at the clip}.
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
    good = optimality(advantages, advantage_clip)[:, None]
    loss = -advantage_clip * mean_over(good * positive + (1.0 - good) * negative, counted)
    if kl_ref is not None:
        loss = loss + kl * mean_over(kl_ref, counted)
    return loss, counts | {"certain": (advantages.abs() >= advantage_clip).double().mean().item()}
