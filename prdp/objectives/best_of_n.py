"""Best-of-N fine-tuning: denoising on the best images of each group (RAFT, Dong et al., 2023, arXiv 2304.06767)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prdp.objectives._groups import by_group, mean_of_groups
from prdp.objectives._knobs import Count

if TYPE_CHECKING:
    import torch


def best_of_n(
    denoising: torch.Tensor, rewards: torch.Tensor, group_ids: torch.Tensor, *, top: Count = 1
) -> tuple[torch.Tensor, dict[str, float]]:
    """Denoising error of the best images of every prompt; prompts whose images are all equally good are left out.

    Args:
        denoising: minus the denoising error of each image and draw, [n, D].
        rewards: raw, [n].
        group_ids: int64 [n], equal for images of one prompt.
        top: images taken per prompt; of equal ones the first.

    Returns:
        the loss, and {"groups_tied": number of prompts left out}.
    """
    r, errors = by_group(rewards, group_ids), by_group(-denoising, group_ids)
    best = r.argsort(stable=True, dim=1, descending=True)[:, :top]
    chosen = errors.take_along_dim(best[:, :, None], 1)
    untied = (r.amin(1) < r.amax(1))[:, None, None].expand_as(chosen)
    loss, tied = mean_of_groups(chosen, untied)
    return loss, {"groups_tied": float(tied)}
