"""The picture of runs side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from synthetic_run import add_evaluation

from prdp.reports.pictures import comparison_picture, grid_scores
from prdp.tracking.evaluations import load_evaluation, save_evaluation
from prdp.types import PromptBatch


def test_comparison_picture_shows_pairs_in_order(whole_run: Path, tmp_path: Path) -> None:
    path = comparison_picture({"after": whole_run}, tmp_path / "docs" / "picture.png", rows=1, columns=3)
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
        assert picture.width > 3 * 2 * 150
    # The discs of the first three prompts, before and after, at a third of each picture's height: red, green, blue.
    row = pixels[pixels.shape[0] // 2]
    order = [
        c
        for c, (hot, cold) in {"red": (0, 2), "green": (1, 0), "blue": (2, 0)}.items()
        if (row[:, hot] - row[:, cold] > 90).any()
    ]
    assert order == ["red", "green", "blue"]
    first = {
        name: np.flatnonzero(row[:, hot] - row[:, cold] > 120)[0] for name, hot, cold in (("red", 0, 2), ("blue", 2, 0))
    }
    assert first["red"] < first["blue"]


def test_comparison_picture_stands_several_runs_side_by_side(whole_run: Path, tmp_path: Path) -> None:
    """The same run twice: a third picture in each row, the same as the second."""
    widths = []
    for runs in ({"a": whole_run}, {"a": whole_run, "b": whole_run}):
        path = comparison_picture(runs, tmp_path / "picture.png", rows=1, columns=1)
        with Image.open(path) as picture:
            widths.append(picture.width)
            pixels = np.asarray(picture.convert("RGB"))
    side = widths[1] - widths[0]
    left = widths[0] - side
    row = pixels.shape[0] // 2
    second, third = pixels[row, left : left + side - 6], pixels[row, left + side : left + 2 * side - 6]
    np.testing.assert_array_equal(second[:100], third[:100])
    assert second.std() > 1


def test_comparison_picture_needs_two_evaluations_with_pictures(tmp_path: Path) -> None:
    add_evaluation(tmp_path, 0, 0.0)
    with pytest.raises(ValueError, match="has 1 evaluations"):
        comparison_picture({"after": tmp_path}, tmp_path / "picture.png")
    add_evaluation(tmp_path, 10, 0.1, grid=0)
    with pytest.raises(ValueError, match="no prompt has a picture in the evaluations of all"):
        comparison_picture({"after": tmp_path}, tmp_path / "picture.png")


def test_a_watched_reward_may_be_written_under_pictures(tmp_path: Path) -> None:
    images, prompts = np.zeros((2, 8, 8, 3), np.uint8), PromptBatch(0, 0, ("a", "b"), ({}, {}))
    judged = {"watch/judge": np.array([0.25, 0.75])}
    for epoch in (0, 1):
        save_evaluation(tmp_path, epoch, prompts, 1, np.array([-3.0, -2.0]), judged, images)
    evaluation = load_evaluation(tmp_path, 1)
    assert grid_scores(evaluation) == {(0, 0): ("a", -3.0), (1, 0): ("b", -2.0)}
    assert grid_scores(evaluation, "judge") == {(0, 0): ("a", 0.25), (1, 0): ("b", 0.75)}
    with pytest.raises(ValueError, match=r"no sub-score 'size'; there are: judge"):
        comparison_picture({"after": tmp_path}, tmp_path / "picture.png", reward="size")


@pytest.mark.parametrize(("height", "width"), [(8, 16), (16, 8)])
def test_pictures_that_are_not_square_keep_their_shape(tmp_path: Path, height: int, width: int) -> None:
    images = np.zeros((1, height, width, 3), np.uint8)
    images[..., 0] = 255
    for epoch in (0, 1):
        save_evaluation(tmp_path, epoch, PromptBatch(0, 0, ("a",), ({},)), 1, np.array([0.5]), {}, images)
    with Image.open(comparison_picture({"after": tmp_path}, tmp_path / "picture.png")) as picture:
        red = (np.asarray(picture.convert("RGB")) == (255, 0, 0)).all(2)
    # Of 176 pixels in width, two of them the outline.
    shape = red.any(1).sum(), red[red.any(1)][0].sum()
    assert shape == (176 * height // width - 2, 2 * (176 - 2))


def test_long_names_under_pictures_end_before_the_next_picture(whole_run: Path, tmp_path: Path) -> None:
    """Between the label of the first run and that of the second there is a gap of blank columns."""
    drawn = []
    for name in ("a_method_with_a_very_long_name_indeed", "short"):
        path = comparison_picture({name: whole_run, "b": whole_run}, tmp_path / "picture.png", rows=1, columns=1)
        with Image.open(path) as picture:
            drawn.append(np.asarray(picture.convert("L"))[-45:])
    gaps = [slice(28 + side * 182 + 176, 28 + (side + 1) * 182) for side in range(2)]
    assert all((pixels[:, gap] == 255).all() for pixels in drawn for gap in gaps)
    assert (drawn[0] != drawn[1]).any()
