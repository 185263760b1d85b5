"""Finite Difference Flow Optimization against its formula, pair by pair and step by step."""

from __future__ import annotations

import numpy as np
import pytest
from golden import GROUPS, SIZE, STEPS, batch, evaluate, numeric_tables


@pytest.mark.parametrize("trust_region", [0.03, 0.5])
def test_the_loss_is_the_formula(trust_region: float) -> None:
    arrays = batch()
    terms, used = [], []
    for first in range(0, GROUPS * SIZE, 2):
        half = (arrays["rewards"][first] - arrays["rewards"][first + 1]) / 2
        for image, gain in ((first, half), (first + 1, -half)):
            for step in range(STEPS):
                ratio = np.exp(arrays["score"][image, step])
                terms.append(-gain * ratio + abs(gain) / (2 * trust_region) * (ratio - 1) ** 2)
                used.append((1 if gain > 0 else -1) * (ratio - 1) / trust_region)
    result = evaluate("fdfo", arrays, trust_region=trust_region)
    assert result.loss == pytest.approx(np.mean(terms), rel=1e-12)
    assert result.metrics == {"pairs_tied": 0.0, "trust_region_used": pytest.approx(np.mean(used))}
    numeric = numeric_tables("fdfo", arrays, trust_region=trust_region)["score"]
    np.testing.assert_allclose(result.tables["score"], numeric, atol=1e-8)


def test_where_the_loss_starts_and_where_it_is_least() -> None:
    arrays, trust_region = batch(), 0.1
    pairs = arrays["rewards"].reshape(-1, 2)
    gain = (0.5 * (pairs - pairs[:, ::-1])).ravel()
    start = evaluate("fdfo", {**arrays, "score": np.zeros((GROUPS * SIZE, STEPS))}, trust_region=trust_region)
    assert start.loss == pytest.approx(0.0, abs=1e-15)
    assert start.metrics["trust_region_used"] == 0.0
    expected = np.repeat(-gain[:, None], STEPS, 1) / (GROUPS * SIZE * STEPS)
    np.testing.assert_allclose(start.tables["score"], expected, rtol=1e-12)
    least = np.log1p(trust_region * np.sign(gain))[:, None].repeat(STEPS, 1)
    end = evaluate("fdfo", {**arrays, "score": least}, trust_region=trust_region)
    np.testing.assert_allclose(end.tables["score"], 0.0, atol=1e-15)
    assert end.metrics["trust_region_used"] == pytest.approx(1.0)


def test_pairs_of_equal_reward_teach_nothing() -> None:
    arrays = batch()
    arrays["rewards"][2:4] = 7.0
    result = evaluate("fdfo", arrays)
    assert result.metrics["pairs_tied"] == 1.0
    assert not result.tables["score"][2:4].any()
    assert result.tables["score"][[0, 1, *range(4, 12)]].all()
    tied = evaluate("fdfo", {**arrays, "rewards": np.ones(GROUPS * SIZE)})
    assert (tied.loss, tied.metrics) == (0.0, {"pairs_tied": 6.0, "trust_region_used": 0.0})


def test_the_kl_is_added() -> None:
    arrays = batch()
    plain, kept = evaluate("fdfo", arrays), evaluate("fdfo", arrays, kl=2.0)
    assert kept.loss == pytest.approx(plain.loss + 2.0 * arrays["kl_ref"].mean())
    np.testing.assert_allclose(kept.tables["kl_ref"], 2.0 / arrays["kl_ref"].size)
    np.testing.assert_array_equal(kept.tables["score"], plain.tables["score"])
    assert plain.tables.keys() == {"score"}


def test_odd_groups_are_refused() -> None:
    arrays = {name: values[:9] for name, values in batch().items()}
    arrays["group_ids"] = np.repeat(np.arange(3), 3)
    with pytest.raises(ValueError, match="groups of 3 images, expected an even number"):
        evaluate("fdfo", arrays)
