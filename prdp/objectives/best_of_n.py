"""Best-of-N fine-tuning: denoising on the best images of each group (RAFT, Dong et al., 2023, arXiv 2304.06767)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prdp.objectives._groups import by_group, mean_of_groups
from prdp.objectives._knobs import Count, Finite

if TYPE_CHECKING:
    import torch


def best_of_n(
    denoising: torch.Tensor,
    rewards: torch.Tensor,
    group_ids: torch.Tensor,
    *,
    top: Count = 1,
    least: Finite | None = None,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Denoising error of the best images of every prompt.

    Prompts whose images are all equally good are left out, and those whose best image is not good enough.

    Args:
        denoising: minus the denoising error of each image and draw, [n, D].
        rewards: raw, [n].
        group_ids: int64 [n], equal for images of one prompt.
        top: images taken per prompt; of equal ones the first.
        least: reward that the best image of a prompt has to have; None leaves none out.

    Returns:
        the loss, 0 where all prompts are left out, and {"groups_tied": number of prompts of equal rewards}; with
        `least` also {"groups_below": number of the others that are left out}.
    """
    r, errors = by_group(rewards, group_ids), by_group(-denoising, group_ids)
    best = r.argsort(stable=True, dim=1, descending=True)[:, :top]
    chosen = errors.take_along_dim(best[:, :, None], 1)
    untied = r.amin(1) < r.amax(1)
    taken = untied if least is None else untied & (r.amax(1) >= least)
    loss, _ = mean_of_groups(chosen, taken[:, None, None].expand_as(chosen))
    counts = {"groups_tied": float((~untied).sum())}
    return loss, counts if least is None else counts | {"groups_below": float((untied & ~taken).sum())}
