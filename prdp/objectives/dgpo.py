"""Direct Group Preference Optimization (Luo et al., 2025, arXiv 2510.08425): the good of a group against its bad."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from prdp.objectives._advantages import Std, group_advantages, mean_over
from prdp.objectives._groups import by_group
from prdp.objectives._knobs import NotNegative, Positive

if TYPE_CHECKING:
    import torch


def dgpo(
    denoising: torch.Tensor,
    denoising_ref: torch.Tensor | None,
    denoising_old: torch.Tensor,
    kl_ref: torch.Tensor | None,
    rewards: torch.Tensor,
    group_ids: torch.Tensor,
    reward_terms: torch.Tensor | None,
    reward_weights: torch.Tensor | None,
    *,
    beta: Positive = 100.0,
    frozen_reference: bool = True,
    clip_range: Positive | None = 1e-3,
    kl: NotNegative = 1e-3,
    advantage_clip: Positive = 5.0,
    std: Std = "batch",
    drop_tied: bool = False,
    normalise_terms: bool = False,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Logistic loss of a group's good images gaining more over a reference than its bad ones, weighted by advantages.

    At each draw, with gains g over the reference and groups of B images,
        -log sigmoid(beta / B sum_i A_i g_i) / beta,
    whose gradient by g_i is -sigmoid(-beta / B sum_j A_j g_j) A_i / B: that of the authors' loss, which has this weight
    of the group as a factor without gradient.

    Args:
        denoising: minus the denoising error of each image and draw, [n, D].
        denoising_ref: the same of the frozen start; None, and not computed, where that is not the reference.
        denoising_old: the same of the moving old policy, to which the trust region is relative.
        kl_ref: mean over latent dims of the squared difference to the reference's output, [n, D]; None, and not
            computed, where kl is 0.
        rewards: raw, [n].
        group_ids: int64 [n], equal for images of one prompt.
        reward_terms, reward_weights, std, drop_tied, normalise_terms: as in `grpo`.
        beta: by how much a group's gain, once made, lessens its weight.
        frozen_reference: whether gains are over the frozen start, instead of the moving old policy.
        clip_range: draws whose exp(denoising - denoising_old) is farther than that from 1, the way the advantage asks
            for, have no gradient; None for no trust region.
        kl: weight of kl_ref.
        advantage_clip: largest absolute advantage.

    Returns:
        the loss, and {"clipfrac": share of draws without gradient, "group_weight": mean sigmoid, 1/2 at the start,
        "groups_tied": number of prompts whose rewards are all equal}.
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
    ratio = (denoising.detach() - denoising_old).exp() - 1.0
    beyond = ratio * advantages.sign()[:, None] > (math.inf if clip_range is None else clip_range)
    gain = denoising.detach().where(beyond, denoising) - (denoising_old if denoising_ref is None else denoising_ref)
    lost = -beta * by_group(advantages[:, None] * gain, group_ids).mean(1)
    loss = mean_over(lost.logaddexp(lost * 0.0), by_group(counted, group_ids).all(1)) / beta
    if kl_ref is not None:
        loss = loss + kl * mean_over(kl_ref, counted)
    weight = lost.detach().sigmoid().mean().item()
    return loss, counts | {"clipfrac": beyond.double().mean().item(), "group_weight": weight}
