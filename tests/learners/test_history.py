"""The memory of rewards per prompt."""

from __future__ import annotations

import numpy as np
import pytest

from prdp.learners.history import RewardHistory


def test_the_latest_rewards_of_each_prompt() -> None:
    history = RewardHistory(3)
    history.remember(0, ["a", "a", "b"], np.array([1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(
        history.including(1, ["a", "c", "a"], np.array([4.0, 5.0, 6.0])),
        [[2.0, 4.0, 6.0], [5.0, np.nan, np.nan], [2.0, 4.0, 6.0]],
    )
    # Looking changes nothing, and the same epoch again adds nothing.
    rewards = np.array([7.0, 8.0])
    expected = [[1.0, 2.0, 7.0], [3.0, 8.0, np.nan]]
    np.testing.assert_array_equal(history.including(1, ["a", "b"], rewards), expected)
    for _ in range(2):
        history.remember(1, ["a", "b"], rewards)
        np.testing.assert_array_equal(history.including(1, ["a", "b"], rewards), expected)


def test_no_length_no_memory() -> None:
    history = RewardHistory(0)
    history.remember(0, ["a"], np.array([1.0]))
    assert history.including(1, ["a", "b"], np.array([1.0, 2.0])).shape == (2, 0)


def test_state_round_trip() -> None:
    history = RewardHistory(2)
    prompts = ["ein Bär", "b", "b", "b"]
    history.remember(4, prompts, np.array([1.0, 2.0, 3.0, 4.0]))
    other = RewardHistory(2)
    other.load_state(*history.state())
    for epoch in (4, 5):
        left, right = (one.including(epoch, prompts, np.arange(4.0)) for one in (history, other))
        np.testing.assert_array_equal(left, right)


def test_terms_are_remembered_apart() -> None:
    history, other = RewardHistory(2, terms=2), RewardHistory(2, terms=2)
    history.remember(0, ["a", "b", "a"], np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    other.load_state(*history.state())
    expected = [[[5.0, 6.0], [7.0, 8.0]], [[0.0, 1.0], [np.nan, np.nan]]]
    for one in (history, other):
        found = one.including(1, ["a", "c"], np.array([[7.0, 8.0], [0.0, 1.0]]))
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match="'history/rewards' has 2 terms a reward, expected one number: objec"):
        RewardHistory(2).load_state(*history.state())
    with pytest.raises(ValueError, match="has one number a reward, expected 2 terms"):
        other.load_state(*RewardHistory(2).state())
    empty = RewardHistory(0, terms=2).including(0, ["a"], np.ones((1, 2)))
    assert empty.shape == (1, 0, 2)
