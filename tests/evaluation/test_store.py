"""What is used again and what is not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from evaluation_folders import IDENTITY, REDNESS, batch, rollout_of

from prdp.evaluation.store import Chunk, Scores, chunks_of, file_name

KEY = {"identity": IDENTITY, "section": REDNESS}


@pytest.fixture
def chunk(tmp_path: Path) -> Chunk:
    [first, _] = chunks_of(tmp_path, "a/b: c", "set", 7, batch(["x", "y", "z"]), 2, 2, {"model": "m", "kl": False})
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    first.save(rollout_of(first.prompts, images, 2))
    np.testing.assert_array_equal(first.images(), images)
    first.save_scores("r", KEY, Scores(np.arange(4.0), {"s": np.array([1, np.nan, 3, 4.0])}, 1.5))
    return first


def test_layout(chunk: Chunk, tmp_path: Path) -> None:
    folder = tmp_path / "samples" / "a_b_c" / "set" / "seed_7" / "00000-00001"
    assert chunk.folder == folder
    names = {"00000_0.png", "00000_1.png", "00001_0.png", "00001_1.png", "chunk.json", "scores.r.json"}
    assert {file.name for file in folder.iterdir()} == names
    assert file_name("runs/x y") == "runs_x_y"


def test_scores_come_back(chunk: Chunk) -> None:
    found = chunk.scores("r", KEY)
    assert found is not None
    assert found.rewards.tolist() == [0, 1, 2, 3] and found.seconds == 1.5
    np.testing.assert_array_equal(found.sub_scores["s"], [1, np.nan, 3, 4])


def test_images_are_used_again_only_under_the_same_key(chunk: Chunk, tmp_path: Path) -> None:
    assert chunk.differences() == []
    other = dataclasses.replace(chunk, key={**chunk.key, "model": "n", "sampler.steps": 9})
    assert other.differences() == ["model", "sampler.steps"]
    [changed, _] = chunks_of(tmp_path, "a/b: c", "set", 7, batch(["x", "Y", "z"]), 2, 2, {"model": "m", "kl": False})
    assert changed.differences() == ["prompts"]
    assert chunks_of(tmp_path, "new", "set", 7, batch(["x"]), 2, 2, {})[0].differences() == ["missing"]


def test_trajectories_that_were_measured_are_no_reason_to_sample_again(chunk: Chunk) -> None:
    with_kl = dataclasses.replace(chunk, key={**chunk.key, "kl": True})
    assert with_kl.differences() == ["kl"]
    with_kl.save(rollout_of(chunk.prompts, chunk.images(), 2))
    assert chunk.differences() == []


def test_scores_of_another_version_or_metadata_do_not_count(chunk: Chunk) -> None:
    newer = {**KEY, "identity": {"name": "redness", "version": "2"}}
    assert chunk.scores("r", newer) is None and chunk.has_scores_of_another("r", newer)
    prompts = dataclasses.replace(chunk.prompts, metadata=({"question": 1}, {}))
    assert dataclasses.replace(chunk, prompts=prompts).scores("r", KEY) is None
    assert chunk.scores("other", KEY) is None and not chunk.has_scores_of_another("other", KEY)


def test_new_images_take_the_scores_of_old_ones_away(chunk: Chunk) -> None:
    chunk.save(rollout_of(chunk.prompts, chunk.images(), 2))
    assert chunk.scores("r", KEY) is None


def test_damaged_files_are_named(chunk: Chunk) -> None:
    (chunk.folder / "00001_0.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"00001_0\.png is not a whole picture"):
        chunk.images()
    (chunk.folder / "chunk.json").write_text("{")
    with pytest.raises(ValueError, match=r"chunk\.json is damaged"):
        chunk.differences()
