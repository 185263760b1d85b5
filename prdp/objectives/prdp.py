"""Proximal reward difference prediction (Deng et al., CVPR 2024, arXiv 2402.08714)."""

from __future__ import annotations

import torch


def prdp(
    log_ratio: torch.Tensor,
    log_ratio_old: torch.Tensor,
    rewards: torch.Tensor,
    group_ids: torch.Tensor,
    *,
    beta: float,
    clip_range: float | None,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Loss of predicting every reward difference within a prompt's group by the difference of log-ratios.

    Appendix G's listing: the stepwise log-ratios are clipped around the old policy's (eq. 20), averaged over steps, and
    the larger of the two squared errors counts (eq. 18). Each unordered pair counts once; pairs of equal reward are
    dropped; the mean goes over a prompt's pairs, then over the prompts that have any.

    Args:
        log_ratio: log pi_theta / pi_ref per image and step, [n, T].
        log_ratio_old: the same under the policy that sampled, [n, T].
        rewards: raw, [n].
        group_ids: int64 [n], equal for images of one prompt.
        beta: KL weight; divides the rewards.
        clip_range: epsilon of eq. 20; None leaves the clip and the max out (eq. 14).

    Returns:
        the loss, and {"groups_tied": number of prompts without a single untied pair}.
    """
    clipped = log_ratio
    if clip_range is not None:
        clipped = torch.clamp(log_ratio, log_ratio_old - clip_range, log_ratio_old + clip_range)
    score, score_clipped = log_ratio.mean(1), clipped.mean(1)

    losses = []
    groups = torch.unique(group_ids)
    for group in groups:
        r, s, c = (values[group_ids == group] for values in (rewards, score, score_clipped))
        better = r[:, None] > r[None, :]
        target = (r[:, None] - r[None, :])[better] / beta
        error = ((s[:, None] - s[None, :])[better] - target) ** 2
        error_clipped = ((c[:, None] - c[None, :])[better] - target) ** 2
        if target.numel():
            losses.append(torch.maximum(error, error_clipped).mean())
    loss = torch.stack(losses).mean() if losses else log_ratio.sum() * 0.0
    return loss, {"groups_tied": float(len(groups) - len(losses))}
