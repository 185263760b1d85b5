"""Building rewards, the simple ones, and the check that every answer goes through."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prdp.rewards import build_reward
from prdp.rewards.base import checked_scores
from prdp.rewards.redness import Redness


def test_redness_of_plain_colours() -> None:
    images = np.zeros((3, 4, 4, 3), np.uint8)
    images[0, ..., 0] = 255
    images[1, ..., 1:] = 255
    np.testing.assert_allclose(Redness().score(images, ["a"] * 3, [{}] * 3), [1.0, -1.0, 0.0])


def test_a_function_by_dotted_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rewards_of_mine.py").write_text(
        "LEVELS = 255\ndef brightness(images, prompts, metadata):\n    return images.mean(axis=(1, 2, 3)) / LEVELS\n"
    )
    monkeypatch.chdir(tmp_path)
    target = "prdp.rewards.python_callable.PythonCallable"
    reward = build_reward({"_target_": target, "path": "rewards_of_mine.brightness"})
    assert reward.name == "brightness"
    np.testing.assert_allclose(reward.score(np.full((2, 2, 2, 3), 51, np.uint8), ["", ""], [{}, {}]), [0.2, 0.2])
    for path, message in {
        "brightness": "path=brightness: must be a dotted path",
        "rewards_of_mine.brihgtness": "has no 'brihgtness'. Did you mean 'brightness'",
        "rewards_of_mine.LEVELS": "path=rewards_of_mine.LEVELS: is a int, must be a function",
        "no_such_module.f": "path=no_such_module.f: there is no module 'no_such_module'",
    }.items():
        with pytest.raises(ValueError, match=message):
            build_reward({"_target_": target, "path": path})


def test_a_target_that_is_no_reward_is_refused() -> None:
    with pytest.raises(ValueError, match=r"builtins\.dict has no name, version, score"):
        build_reward({"_target_": "builtins.dict"})


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda: np.zeros(3), r"reward 'r' \(epoch 1\) has shape \(3,\), expected \(2,\)"),
        (lambda: [0.0, float("nan")], "returned nan for image 1 of 2"),
        (lambda: ["high", "low"], "is not an array of numbers"),
        (lambda: (np.zeros(2), {"part": np.zeros(1)}), r"sub-score 'part' of reward 'r' .* shape \(1,\)"),
    ],
)
def test_bad_answers_are_named(result: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checked_scores("reward 'r'", result(), 2, "epoch 1")


def test_sub_scores_may_be_nan_and_two_numbers_are_two_images() -> None:
    rewards, parts = checked_scores("reward 'r'", (np.ones(2), {"relation": np.array([np.nan, 1.0])}), 2)
    assert rewards.tolist() == [1.0, 1.0]
    assert np.isnan(parts["relation"][0])
    assert checked_scores("reward 'r'", (0.25, 0.5), 2)[0].tolist() == [0.25, 0.5]
