"""Diffusion-DPO (Wallace et al., CVPR 2024, arXiv 2311.12908), online: preferences are the rewards of fresh samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from prdp.objectives._groups import by_group, differences, mean_of_groups
from prdp.objectives._knobs import Positive

if TYPE_CHECKING:
    import torch


def diffusion_dpo(
    denoising: torch.Tensor,
    denoising_ref: torch.Tensor,
    rewards: torch.Tensor,
    group_ids: torch.Tensor,
    *,
    beta: Positive = 5000.0,
    pairs: Literal["extremes", "all"] = "extremes",
) -> tuple[torch.Tensor, dict[str, float]]:
    """Logistic loss of the preferred image gaining more, in denoising error against the reference, than the other.

    Eq. 14, with the authors' constants: -log sigmoid(beta / 2 ((e_w - e_w_ref) - (e_l - e_l_ref))) for the negative
    denoising errors e, mean over latent dims, of a pair noised alike, averaged over draws and pairs.

    Args:
        denoising: minus the denoising error of each image and draw, [n, D].
        denoising_ref: the same of the reference, [n, D].
        rewards: raw, [n].
        group_ids: int64 [n], equal for images of one prompt.
        beta: KL weight on the authors' scale.
        pairs: the best image of a group against its worst, or every pair of different reward.

    Returns:
        the loss, mean over a prompt's pairs and then over prompts, and {"groups_tied": number of prompts without a
        pair, "implicit_accuracy": share of pairs and draws that the policy already orders as the rewards do}.
    """
    r, gain = by_group(rewards, group_ids), by_group(denoising - denoising_ref, group_ids)
    preferred = differences(r) > 0
    if pairs == "extremes":
        places = r.new_tensor(range(r.shape[1]))
        preferred &= (places == r.argmax(1, keepdim=True))[:, :, None] & (places == r.argmin(1, keepdim=True))[:, None]
    margin = 0.5 * beta * differences(gain)
    counted = preferred[..., None].expand_as(margin)
    loss, tied = mean_of_groups((-margin).logaddexp(margin * 0.0), counted)
    accuracy, _ = mean_of_groups((margin > 0).to(margin), counted)
    return loss, {"groups_tied": float(tied), "implicit_accuracy": accuracy.item()}
