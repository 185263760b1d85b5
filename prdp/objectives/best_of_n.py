"""Best-of-N fine-tuning: denoising on the best images of each group (RAFT, Dong et al., 2023, arXiv 2304.06767)."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    losses = []
    groups = group_ids.unique()
    for group in groups:
        r, errors = rewards[group_ids == group], -denoising[group_ids == group]
        if r.min() < r.max():
            losses.append(errors[r.argsort(descending=True, stable=True)[:top]].mean())
    loss = sum(losses, start=denoising.sum() * 0.0) / max(len(losses), 1)
    return loss, {"groups_tied": float(len(groups) - len(losses))}
