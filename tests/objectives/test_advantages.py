"""Group advantages: by hand, against the authors' tracker of Flow-GRPO; and losses of groups without spread."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from golden import SIZE, STEPS, batch, evaluate, numeric_tables

from prdp.objectives import OBJECTIVES, objective_mistakes
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
        ("pooled", [0.0, 0.75 / (0.4330127018922193 + 1e-4), -0.75 / (0.4330127018922193 + 1e-4), 0.0, 0.0, 0.0]),
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


TERMS = np.array([[5000.0, 3e4], [12500.0, 1e4], [-2500.0, 2e4], [1000.0, 7e4], [1000.0, 7e4], [4000.0, 7e4]])
WEIGHTS = np.array([2.0, -0.5])


def test_terms_are_standardised_each_by_itself() -> None:
    """Numbers of GDPO in Flow-Factory (5/2026), which adds nothing to a spread; ours is 1e-8 of these spreads."""
    terms, weights = torch.from_numpy(TERMS), torch.from_numpy(WEIGHTS)
    found = group_advantages(terms @ weights, GROUPS, clip=5.0, drop_tied=True, terms=terms, weights=weights)
    expected = [
        *(-0.2847473987257497, 1.4237369936287487, -1.138989594902999),
        *(-0.657595949221429, -0.657595949221429, 1.315191898442858),
    ]
    np.testing.assert_allclose(found.values.numpy(), expected, rtol=1e-6)
    assert found.counted.all() and found.counts == {"groups_tied": 0.0}, "the second term alone is tied"
    scaled = group_advantages(
        terms @ weights, GROUPS, clip=5.0, terms=terms * torch.tensor([1.0, 1e3]), weights=weights
    )
    np.testing.assert_allclose(scaled.values.numpy(), expected, rtol=1e-6, err_msg="units do not count")
    # The weighted sum as a whole is the second term's, whose spread is the larger one.
    whole = group_advantages(torch.from_numpy(TERMS @ [1.0, 1.0]), GROUPS, clip=5.0).values.numpy()
    assert whole[1] < 0 < expected[1]


def test_a_group_is_tied_where_all_terms_are() -> None:
    terms, weights = torch.from_numpy(TERMS).clone(), torch.from_numpy(WEIGHTS)
    terms[3:] = torch.tensor([0.1, 0.3], dtype=torch.float64)
    found = group_advantages(terms @ weights, GROUPS, clip=5.0, drop_tied=True, terms=terms, weights=weights)
    assert found.counted.tolist() == [True] * 3 + [False] * 3 and not found.values[3:].any()
    assert found.counts == {"groups_tied": 1.0}
    terms[:] = 0.1
    assert not group_advantages(terms @ weights, GROUPS, clip=5.0, terms=terms, weights=weights).values.any()


POLICY_GRADIENTS = [
    name
    for name, method in OBJECTIVES.items()
    if "reward_terms" in method.arrays and {"log_importance", "guarded_importance"} & set(method.arrays)
]


@pytest.mark.parametrize("name", POLICY_GRADIENTS)
def test_one_term_is_the_reward_but_for_the_last_division(name: str) -> None:
    arrays = batch(spread=0.0)
    arrays |= {"reward_terms": arrays["rewards"][:, None], "reward_weights": np.array([3.0])}
    knobs = {"std": "batch"} if "group_ids" in OBJECTIVES[name].arrays else {"min_count": 4}
    plain = evaluate(name, arrays, **knobs)
    apart = evaluate(name, arrays | {"history": arrays["history"][:, :, None]}, normalise_terms=True, **knobs)
    for channel in plain.tables.keys() - {"kl_ref", "kl_old"}:
        ratio = apart.tables[channel] / plain.tables[channel]
        np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-9)


def test_terms_by_the_history_of_their_prompt() -> None:
    """Two images of one prompt, three rewards known; a number a term, by hand."""
    arrays = {
        "log_importance": np.zeros((2, 1)),
        "rewards": np.array([7.0, 7.0]),
        "history": np.array([[[9.0, 9.0], [1.0, 0.0], [3.0, 4.0]], [[9.0, 9.0], [1.0, 0.0], [3.0, 4.0]]]),
        "reward_terms": np.array([[3.0, 2.0], [2.0, 4.0]]),
        "reward_weights": np.array([1.0, 2.0]),
    }
    # Of the latest two: means 2 and 2, deviations 1 and 2: advantages (1, 0) and (0, 1), sums 1 and 2, over their root
    # mean square, sqrt(5 / 2).
    for name in ("ddpo", "reinforce"):
        result = evaluate(name, arrays, buffer_size=2, min_count=2, normalise_terms=True)
        np.testing.assert_allclose(result.tables["log_importance"][:, 0], np.array([-1, -2]) / np.sqrt(10), rtol=1e-5)


def test_what_normalise_terms_goes_with() -> None:
    [told] = objective_mistakes({"name": "grpo", "normalise_terms": True, "std": "none"})
    assert told.startswith("objective.normalise_terms=true: has no effect with objective.std=none")
    with pytest.raises(ValueError, match=r"reward_terms \(11, 2\).* do not fit: .*reward_terms \[n, M\]"):
        evaluate("grpo", batch() | {"reward_terms": np.zeros((11, 2))}, normalise_terms=True)
    with pytest.raises(ValueError, match=r"reward_weights \(3,\).* do not fit"):
        evaluate("grpo", batch() | {"reward_weights": np.zeros(3)}, normalise_terms=True)
