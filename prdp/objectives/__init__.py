"""Objectives: evidence in, a scalar loss and its coefficients out. They know no model and no device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from prdp.objectives.prdp import prdp

OBJECTIVES: dict[str, Callable[..., tuple[torch.Tensor, dict[str, float]]]] = {"prdp": prdp}


@dataclass(frozen=True)
class Coefficients:
    """What an objective says of one full batch.

    Attributes:
        loss: the scalar.
        table: float64 [n, T], d loss / d log_ratio.
        metrics: the objective's own counts.
    """

    loss: float
    table: npt.NDArray[np.float64]
    metrics: dict[str, float]


def coefficients(
    name: str,
    log_ratio: npt.ArrayLike,
    log_ratio_old: npt.ArrayLike,
    rewards: npt.ArrayLike,
    group_ids: npt.ArrayLike,
    *,
    step_weights: npt.ArrayLike | None = None,
    **knobs: float | None,
) -> Coefficients:
    """Evaluate an objective on the host in float64 and differentiate it with respect to the evidence.

    Args:
        name: of OBJECTIVES.
        log_ratio, log_ratio_old: [n, T], against the reference.
        rewards, group_ids: [n].
        step_weights: [T], scales the evidence of each step before the objective sees it, so clipping too happens on
            the scaled evidence; None is the paper's, all ones.
        knobs: the objective's own, such as beta and clip_range.

    Raises:
        ValueError: an unknown objective, or shapes that do not fit.
    """
    if name not in OBJECTIVES:
        raise ValueError(f"objective.name is {name!r}, expected one of {', '.join(sorted(OBJECTIVES))}")
    evidence = torch.tensor(np.asarray(log_ratio, np.float64), requires_grad=True)
    old = torch.tensor(np.asarray(log_ratio_old, np.float64))
    reward, group = torch.tensor(np.asarray(rewards, np.float64)), torch.tensor(np.asarray(group_ids, np.int64))
    of_images = (len(evidence),)
    if evidence.shape != old.shape or evidence.dim() != 2 or reward.shape != of_images or group.shape != of_images:
        raise ValueError(
            f"evidence {tuple(evidence.shape)}, old evidence {tuple(old.shape)}, rewards {tuple(reward.shape)} and "
            f"group ids {tuple(group.shape)} do not fit: expected [n, T], [n, T], [n], [n]"
        )
    weights = torch.ones(evidence.shape[1], dtype=torch.float64)
    if step_weights is not None:
        weights = torch.tensor(np.asarray(step_weights, np.float64))
    loss, metrics = OBJECTIVES[name](evidence * weights, old * weights, reward, group, **knobs)
    (table,) = torch.autograd.grad(loss, evidence)
    return Coefficients(loss.item(), table.numpy(), metrics)
