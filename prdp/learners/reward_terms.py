"""The terms of a weighted sum, for objectives that take them apart."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from prdp.types import Float64, Rollout

TERMS = "reward_terms"
"""The array of a loss that holds them."""


def reward_terms(rollout: Rollout, weights: Mapping[str, float]) -> dict[str, Float64]:
    """{"reward_terms": float64 [n, M], as each term scored, "reward_weights": float64 [M]}.

    Args:
        rollout: scored by the weighted sum, whose terms are sub-scores.
        weights: of its terms that are optimised.

    Raises:
        ValueError: no terms; a term that the rollout has no scores of, or whose scores are not finite; names it.
    """
    if not weights:
        raise ValueError(
            "the objective takes the terms of a reward apart, and no terms are known: the reward must be a weighted_sum"
        )
    for name in weights:
        values = rollout.sub_scores.get(name)
        if values is None:
            known = ", ".join(rollout.sub_scores) or "none"
            raise ValueError(f"the rollout has no scores of the reward's term '{name}', it has sub-scores {known}")
        wrong = int((~np.isfinite(values)).sum())
        if wrong:
            raise ValueError(f"{wrong} of {len(rollout)} scores of the reward's term '{name}' are not finite")
    columns = np.stack([np.asarray(rollout.sub_scores[name], np.float64) for name in weights], axis=1)
    return {TERMS: columns, "reward_weights": np.array(list(weights.values()), np.float64)}
