"""REBEL (Gao et al., NeurIPS 2024, arXiv 2404.16767): regression to relative rewards, against the old policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from prdp.objectives._groups import Pairs, by_group, differences, mean_of_groups, paired
from prdp.objectives._knobs import Positive

if TYPE_CHECKING:
    import torch


def rebel(
    log_importance: torch.Tensor,
    rewards: torch.Tensor,
    group_ids: torch.Tensor,
    *,
    eta: Positive = 1.0,
    step_reduction: Literal["mean", "sum"] = "sum",
    pairs: Pairs = "all",
) -> tuple[torch.Tensor, dict[str, float]]:
    """Squared error of log-ratio differences to the old policy, divided by eta, as predictions of reward differences.

    Args:
        log_importance: log pi_theta / pi_old of each step, of the policy now and the one that sampled, [n, T].
        rewards: raw, [n].
        group_ids: int64 [n], equal for images of one prompt.
        eta: step size; the larger, the farther one round of regression may go.
        step_reduction: of log-ratios over steps: the sum, which is the trajectory's, or the mean.
        pairs: which images of a group are compared, see `paired`.

    Returns:
        the loss, mean over a prompt's pairs and then over prompts, and no counts.
    """
    score = log_importance.sum(1) if step_reduction == "sum" else log_importance.mean(1)
    r, s = by_group(rewards, group_ids), by_group(score, group_ids)
    error = differences(s) / eta - differences(r)
    once = paired(r, pairs).triu(1).expand_as(error)
    return mean_of_groups(error.square(), once)[0], {}
