"""Group advantages: by hand, against the authors' tracker of Flow-GRPO; and losses of groups without spread."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from golden import SIZE, STEPS, batch, evaluate, numeric_tables

from prdp.objectives._advantages import group_advantages, mean_over

REWARDS = torch.tensor([0.5, 1.25, -0.25, 0.1, 0.1, 0.1], dtype=torch.float64)
GROUPS = torch.tensor([0, 0, 0, 1, 1, 1])


@pytest.mark.parametrize(
    ("std", "expected"),
    [
        # Of flow_grpo's PerPromptStatTracker, global_std False and True. Its code gives the second group rounding
        # errors of 1e-13, as 0.1 + 0.1 + 0.1 is not 0.3.
        ("group", [0.0, 1.22454490404612, -1.22454490404612, 0.0, 0.0, 0.0]),
        ("batch", [0.0, 1.5720976538564007, -1.5720976538564007, 0.0, 0.0, 0.0]),
        ("none", [0.0, 0.75, -0.75, 0.0, 0.0, 0.0]),
    ],
)
def test_equal_the_authors_and_are_zero_where_a_group_is_tied(std: Any, expected: list[float]) -> None:
    found = group_advantages(REWARDS, GROUPS, std=std, clip=5.0)
    np.testing.assert_allclose(found.values.numpy(), expected, rtol=1e-12)
    assert not found.values[3:].any(), "equal rewards are a tie whatever rounding makes of their mean"
    assert found.counts == {"groups_tied": 1.0}
    assert found.counted.tolist() == [True] * 6
    order = torch.tensor([3, 0, 4, 2, 5, 1])
    mixed = group_advantages(REWARDS[order], GROUPS[order], std=std, clip=0.6, drop_tied=True)
    np.testing.assert_allclose(mixed.values.numpy(), np.clip(expected, -0.6, 0.6)[order.numpy()], rtol=1e-12)
    assert mixed.counted.tolist() == [False, True, False, True, False, True]


def test_mean_over() -> None:
    values = torch.arange(6.0, dtype=torch.float64).view(3, 2).requires_grad_()
    assert mean_over(values, torch.tensor([True, False, True])).item() == (0 + 1 + 4 + 5) / 4
    nothing = mean_over(values, torch.tensor([False] * 3))
    nothing.backward()
    assert nothing.item() == 0.0
    assert values.grad is not None
    assert not values.grad.any()


@pytest.mark.parametrize("std", ["group", "batch", "none"])
def test_dropped_groups_leave_the_loss_of_the_others(std: str) -> None:
    arrays = batch()
    arrays["rewards"][:SIZE] = 0.1
    knobs = {"std": std, "beta": 0.4, "clip_range": 0.03}
    kept, dropped = (evaluate("grpo", arrays, drop_tied=drop, **knobs) for drop in (False, True))
    if std != "batch":  # whose spread is of all rewards, the dropped ones too
        others = {name: values[SIZE:] for name, values in arrays.items()}
        assert dropped.loss == pytest.approx(evaluate("grpo", others, **knobs).loss, rel=1e-12)
    assert dropped.metrics["groups_tied"] == kept.metrics["groups_tied"] == 1.0
    for name, table in dropped.tables.items():
        assert not table[:SIZE].any()
        np.testing.assert_allclose(table[SIZE:], kept.tables[name][SIZE:] * 3 / 2, rtol=1e-12)
    np.testing.assert_allclose(
        dropped.tables["log_importance"],
        numeric_tables("grpo", arrays, drop_tied=True, **knobs)["log_importance"],
        atol=1e-8,
    )


def test_nothing_is_learned_where_all_groups_are_dropped() -> None:
    arrays = batch() | {"rewards": np.full(12, 0.1)}
    result = evaluate("grpo", arrays, drop_tied=True, beta=0.4)
    assert result.loss == 0.0
    assert result.metrics["groups_tied"] == 3.0
    assert {name: table.any() for name, table in result.tables.items()} == {"log_importance": False, "kl_ref": False}
    assert result.tables["kl_ref"].shape == (12, STEPS)
