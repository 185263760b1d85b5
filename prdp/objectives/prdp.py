"""Proximal reward difference prediction (Deng et al., CVPR 2024, arXiv 2402.08714)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from prdp.objectives._advantages import Std, group_advantages
from prdp.objectives._groups import Pairs, by_group, differences, mean_of_groups, paired
from prdp.objectives._knobs import NotNegative, Positive

if TYPE_CHECKING:
    import torch


def prdp(
    log_ratio: torch.Tensor,
    log_ratio_old: torch.Tensor | None,
    kl_ref: torch.Tensor | None,
    rewards: torch.Tensor,
    group_ids: torch.Tensor,
    reward_terms: torch.Tensor | None,
    reward_weights: torch.Tensor | None,
    *,
    beta: Positive = 3e-5,
    clip_range: Positive | None = 1e-4,
    step_reduction: Literal["mean", "sum"] = "mean",
    pairs: Pairs = "all",
    std: Std = "none",
    normalise_terms: bool = False,
    kl: NotNegative = 0.0,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Loss of predicting every reward difference within a prompt's group by the difference of log-ratios.

    Appendix G's listing: the stepwise log-ratios are clipped around the old policy's (eq. 20), averaged over steps, and
    the larger of the two squared errors counts (eq. 18). Each unordered pair counts once; pairs of equal reward are
    dropped; the mean goes over a prompt's pairs, then over the prompts that have any.

    Args:
        log_ratio: log pi_theta / pi_ref per image and step, [n, T].
        log_ratio_old: the same under the policy that sampled, [n, T]; None where there is no clip.
        kl_ref: distance of outputs to the reference's, as the evidence defines it, [n, T]; None, and not computed,
            where kl is 0.
        rewards: raw, [n].
        group_ids: int64 [n], equal for images of one prompt.
        reward_terms, reward_weights, normalise_terms: as in `grpo`.
        beta: KL weight; divides the rewards.
        clip_range: epsilon of eq. 20; None leaves the clip and the max out (eq. 14).
        step_reduction: of log-ratios over steps: the listing's mean, or eq. 21's sum, whose beta is T times smaller.
        pairs: which images of a group are compared, see `paired`.
        std: what rewards are divided by, so that one beta suits rewards of any scale; nothing, as in the paper, or a
            spread, see `group_advantages`.
        kl: weight of the mean of kl_ref, which is added; not in the paper. Differences of log-ratios say nothing of
            what a group's log-ratios have in common, and this does.

    Returns:
        the loss, and {"groups_tied": number of prompts without a single untied pair, "clipfrac": share of log-ratios
        beyond the clip range, "prediction_size": root mean square of the predicted reward differences over that of the
        true ones: 0 at the reference, 1 at the regression's optimum; 0 where all are tied}. While the predictions are
        far smaller than the truth, the gradient is group-relative REINFORCE's, and beta has no effect.
    """
    clipped, clipfrac = log_ratio, 0.0
    if clip_range is not None and log_ratio_old is not None:
        clipped = log_ratio.clamp(log_ratio_old - clip_range, log_ratio_old + clip_range)
        clipfrac = ((log_ratio - log_ratio_old).abs() > clip_range).double().mean().item()
    score, score_clipped = (
        values.mean(1) if step_reduction == "mean" else values.sum(1) for values in (log_ratio, clipped)
    )

    if std != "none":
        rewards = group_advantages(
            rewards, group_ids, std=std, clip=math.inf, terms=reward_terms, weights=reward_weights
        ).values
    r, s, c = (by_group(values, group_ids) for values in (rewards, score, score_clipped))
    better = (differences(r) > 0) & paired(r, pairs)
    target = differences(r) / beta
    error, error_clipped = ((differences(values) - target) ** 2 for values in (s, c))
    loss, tied = mean_of_groups(error.maximum(error_clipped), better)
    if kl_ref is not None:
        loss = loss + kl * kl_ref.mean()
    predicted, true = (values[better].square().sum().item() for values in (differences(s), target))
    size = math.sqrt(predicted / true) if true else 0.0
    return loss, {"groups_tied": float(tied), "clipfrac": clipfrac, "prediction_size": size}
