"""Evaluations on disk: whole or not at all, and the same when read back."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from synthetic_run import add_evaluation, disc_images, prompt_batch, strict_lines

from prdp.tracking import evaluations
from prdp.tracking.evaluations import list_evaluations, load_evaluation, save_evaluation
from prdp.tracking.statistics import mean_interval


def test_scores_pictures_and_summary_come_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rewards = rng.random(12)
    part = np.where(np.arange(12) < 6, rng.random(12), np.nan)
    images = disc_images(4, size=8)
    metrics = save_evaluation(tmp_path, 10, prompt_batch(6), 2, rewards, {"part": part}, images)

    groups = np.repeat(np.arange(6), 2)
    mean, low, high = mean_interval(rewards, groups)
    assert metrics == {
        "eval/score": mean,
        "eval/score_low": low,
        "eval/score_high": high,
        "eval/part": pytest.approx(np.nanmean(part)),
    }
    loaded = load_evaluation(tmp_path, 10)
    np.testing.assert_array_equal(loaded.scores, rewards)
    np.testing.assert_array_equal(loaded.sub_scores["part"], part)
    np.testing.assert_array_equal(loaded.prompt_index, groups)
    assert loaded.image_index.tolist() == [0, 1] * 6 and loaded.prompts[2] == prompt_batch(6).texts[1]
    assert loaded.summary()["sub_scores"]["part"]["images"] == 6 and loaded.grid_prompts == 2
    odd = loaded.summary()["categories"]["odd"]
    assert odd["mean"] == pytest.approx(rewards[groups % 2 == 1].mean()) and odd["images"] == 6
    with Image.open(loaded.image_path(1, 1)) as image:
        np.testing.assert_array_equal(np.asarray(image), images[3])
    assert {entry.name for entry in (loaded.folder / "grid").iterdir()} == {
        "000_0.png", "000_1.png", "001_0.png", "001_1.png",
    }  # fmt: skip


def test_files_are_strict_json(tmp_path: Path) -> None:
    metrics = save_evaluation(
        tmp_path, 0, prompt_batch(1), 1, np.array([0.5]), {"none": np.array([math.nan])}, disc_images(1)
    )
    assert math.isnan(metrics["eval/score_low"]) and math.isnan(metrics["eval/none"])
    folder = tmp_path / "evaluations" / "epoch_00000"
    assert strict_lines(folder / "scores.jsonl")[0]["sub_scores"] == {"none": "NaN"}
    assert "NaN," not in (folder / "summary.json").read_text().replace('"NaN",', "")
    assert math.isnan(load_evaluation(tmp_path, 0).sub_scores["none"][0])


def test_a_failure_leaves_the_earlier_evaluation_and_nothing_half_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_evaluation(tmp_path, 5, 0.0)
    before = load_evaluation(tmp_path, 5).scores

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(evaluations, "_save_grid", fail)
    with pytest.raises(OSError, match="epoch_00005"):
        add_evaluation(tmp_path, 5, 0.2)
    np.testing.assert_array_equal(load_evaluation(tmp_path, 5).scores, before)
    assert [entry.name for entry in (tmp_path / "evaluations").iterdir()] == ["epoch_00005"]


def test_the_same_epoch_again_replaces_it(tmp_path: Path) -> None:
    add_evaluation(tmp_path, 5, 0.0, grid=4)
    add_evaluation(tmp_path, 5, 0.2, grid=1)
    loaded = load_evaluation(tmp_path, 5)
    assert loaded.grid_prompts == 1 and len(list((loaded.folder / "grid").iterdir())) == 2


def test_only_whole_evaluations_are_listed(tmp_path: Path) -> None:
    assert list_evaluations(tmp_path) == []
    for epoch in (20, 0, 100):
        add_evaluation(tmp_path, epoch, 0.0, prompts=2, grid=0)
    (tmp_path / "evaluations" / "epoch_00030").mkdir()
    (tmp_path / "evaluations" / ".partial-123-epoch_00040").mkdir()
    assert list_evaluations(tmp_path) == [0, 20, 100]
    with pytest.raises(FileNotFoundError, match=r"no evaluation of epoch 7 in .*; there are: 0, 20, 100"):
        load_evaluation(tmp_path, 7)


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    add_evaluation(tmp_path, 0, 0.0)
    path = tmp_path / "evaluations" / "epoch_00000" / "scores.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], json.dumps({"prompt": "x"}), *lines[2:]]))
    with pytest.raises(ValueError, match=r"scores.jsonl line 2 is damaged"):
        load_evaluation(tmp_path, 0)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("scores.jsonl", {"image": 10**30}, r"scores\.jsonl line 1 is damaged: "),
        ("scores.jsonl", {"score": "high"}, r"scores\.jsonl line 1 is damaged: could not convert string"),
        ("scores.jsonl", {"sub_scores": [1]}, r"scores\.jsonl line 1 is damaged: "),
        ("summary.json", {"sub_scores": 5}, r"summary\.json is damaged: "),
        ("summary.json", {"grid_prompts": None}, r"summary\.json is damaged: "),
    ],
)
def test_values_of_another_kind_are_named(tmp_path: Path, file: str, change: dict, message: str) -> None:
    add_evaluation(tmp_path, 0, 0.0)
    path = tmp_path / "evaluations" / "epoch_00000" / file
    first, _, rest = path.read_text().partition("\n" if file == "scores.jsonl" else "\0")
    path.write_text("\n".join([json.dumps({**json.loads(first), **change}), rest]))
    with pytest.raises(ValueError, match=message):
        load_evaluation(tmp_path, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards": np.zeros(5)}, r"rewards has shape \(5,\), expected \(4,\): 2 prompts with 2 images"),
        ({"sub_scores": {"color": np.zeros(3)}}, "sub-score 'color' has shape"),
        ({"grid_images": np.zeros((3, 4, 4, 3), np.uint8)}, r"expected uint8 \[g \* 2"),
        ({"grid_images": np.zeros((2, 4, 4, 3))}, "float64"),
        ({"grid_images": np.zeros((6, 4, 4, 3), np.uint8)}, "6 grid images, but the evaluation has only 4"),
        ({"prompts": prompt_batch(0)}, "at least one prompt"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(tmp_path: Path, change: dict, message: str) -> None:
    arguments = {
        "prompts": prompt_batch(2),
        "rewards": np.zeros(4),
        "sub_scores": {},
        "grid_images": disc_images(2),
        **change,
    }
    with pytest.raises(ValueError, match=message):
        save_evaluation(tmp_path, 0, images_per_prompt=2, **arguments)
    assert list_evaluations(tmp_path) == []
