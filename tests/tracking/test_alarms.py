"""Alarms of held-out evaluations: what is raised, from which epoch on, and what is chance."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from prdp.tracking.alarms import alarms
from prdp.tracking.evaluations import Evaluation

PROMPTS, SIZE = 40, 2
NOISE = np.random.default_rng(0).normal(0, 0.1, PROMPTS * SIZE)


def evaluation(
    epoch: int, score: float, parts: Mapping[str, float] | None = None, pictures: Mapping[str, float] | None = None
) -> Evaluation:
    """Means as given; the images differ by a spread of .1, and from epoch to epoch by .01."""
    count = PROMPTS * SIZE

    def values(mean: float) -> np.ndarray:
        noise = np.random.default_rng(epoch).normal(0, 0.01, count)
        return mean + NOISE + noise - noise.mean()

    return Evaluation(
        folder=Path("nowhere"),
        epoch=epoch,
        prompt_index=np.repeat(np.arange(PROMPTS), SIZE),
        image_index=np.tile(np.arange(SIZE), PROMPTS),
        prompts=tuple(f"prompt {place}" for place in range(PROMPTS) for _ in range(SIZE)),
        categories=("",) * count,
        scores=values(score),
        sub_scores={name: values(mean) for name, mean in (parts or {}).items()},
        pictures={name: values(mean) for name, mean in (pictures or {}).items()},
        grid_prompts=0,
    )


def found(*evaluations: Evaluation) -> list[tuple[int, str]]:
    return [(alarm.epoch, alarm.subject) for alarm in alarms(evaluations)]


def test_a_watched_term_that_falls_while_the_score_rises_is_named_with_its_first_epoch() -> None:
    start = evaluation(0, 0.5, {"watch/aesthetic": 0.6, "color": 0.5})
    fine = evaluation(10, 0.55, {"watch/aesthetic": 0.6, "color": 0.55})
    worse = evaluation(20, 0.6, {"watch/aesthetic": 0.55, "color": 0.6})
    worst = evaluation(30, 0.65, {"watch/aesthetic": 0.4, "color": 0.45})
    assert found(start, fine) == []
    assert found(start, fine, worse, worst) == [(20, "watch/aesthetic"), (30, "color")]
    [first, second] = alarms([start, fine, worse, worst])
    assert first.text.startswith("the watched term aesthetic falls since epoch 20, by 0.2")
    assert second.text.startswith("the sub-score color falls since epoch 30, by 0.05")
    assert found(start, worse, evaluation(40, 0.65, {"watch/aesthetic": 0.6, "color": 0.6})) == [], "it has recovered"
    assert found(start, evaluation(20, 0.5, {"watch/aesthetic": 0.4})) == [], "the score did not rise"


def test_pictures_that_move_by_more_than_they_differ() -> None:
    start = evaluation(0, 0.5, pictures={"saturation": 0.4, "diversity": 0.2})
    assert found(start, evaluation(10, 0.6, pictures={"saturation": 0.45, "diversity": 0.15})) == []
    far = evaluation(20, 0.6, pictures={"saturation": 0.6, "diversity": 0.05})
    texts = {alarm.subject: alarm.text for alarm in alarms([start, far])}
    assert texts["saturation"].startswith("saturation of the pictures has moved since epoch 20: by +0.")
    assert "alike since epoch 20" in texts["diversity"]


def test_a_score_past_its_best_is_named_with_the_epoch_of_the_best() -> None:
    rows = [evaluation(epoch, score) for epoch, score in ((0, 0.5), (10, 0.7), (20, 0.69), (30, 0.6))]
    [alarm] = alarms(rows)
    assert (alarm.epoch, alarm.subject) == (10, "score")
    assert alarm.text.startswith("the held-out score falls since epoch 10, by 0.")
    assert float(alarm.text.rsplit(" ", 1)[1]) == pytest.approx(0.1, abs=0.01)
    assert found(*rows[:2]) == []


def test_what_cannot_be_compared_raises_nothing() -> None:
    start = evaluation(0, 0.5, {"watch/a": 0.5})
    other = evaluation(10, 0.1, {"watch/a": 0.1})
    changed = Evaluation(**{**vars(other), "prompts": tuple(f"{one}!" for one in other.prompts)})
    assert found(start) == found() == found(start, changed) == []


@pytest.mark.parametrize("seed", range(3))
def test_chance_raises_nothing(seed: int) -> None:
    """Twenty sub-scores that differ by noise alone, in six evaluations."""
    rng = np.random.default_rng(seed)
    rows = []
    for epoch in range(6):
        row = evaluation(epoch, 0.5 + 0.05 * epoch)
        parts = {f"part {k}": rng.normal(0.5, 0.1, PROMPTS * SIZE) for k in range(20)}
        rows.append(Evaluation(**{**vars(row), "sub_scores": parts}))
    assert found(*rows) == []
