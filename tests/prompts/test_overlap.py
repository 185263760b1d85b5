"""Held-out prompts that are trained on are counted at the start: refused when it is all, told when it is some."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from prdp.checkpoints.checkpoint import CheckpointError
from prdp.checkpoints.compatible import check_compatible, check_same_prompts
from prdp.cli import main as prdp
from prdp.config import TrainConfig
from prdp.prompts.animals import AnimalPrompts
from prdp.prompts.hf_dataset import HfDatasetPrompts
from prdp.prompts.mixture import MixturePrompts
from prdp.prompts.overlap import check_overlap, count_overlap
from prdp.prompts.text_file import TextFilePrompts
from prdp.support.errors import ConfigError
from prdp.worlds.mixtures.prompts import GaussianMixturePrompts
from prdp.worlds.shapes.prompts import ShapesPrompts


def text_file(path: Path, *lines: str) -> TextFilePrompts:
    path.write_text("\n".join(lines) + "\n")
    return TextFilePrompts(str(path))


def test_equal_prompts_are_counted_but_for_case_punctuation_and_spaces(tmp_path: Path) -> None:
    train = text_file(tmp_path / "train.txt", "a cat", "a dog", "a fox", "a cat")
    heldout = text_file(tmp_path / "heldout.txt", "A  cat!", "a bear", "a  CAT", "a fox", "a lake")
    found = count_overlap(train, heldout, ["a bear", "a fox"])
    assert found == (5, 3, 2, 1, "a fox")
    note = check_overlap(train, heldout, ["a bear", "a fox"], allowed=False)
    assert note.startswith(
        "warning: 1 of the 2 held-out prompts that evaluations use, and 3 of all 5 are training prompts too, such as "
        "'a fox'"
    )
    assert check_overlap(train, heldout, ["a bear"], allowed=False).startswith("warning: 0 of the 1")
    assert check_overlap(text_file(tmp_path / "other.txt", "a sea"), heldout, ["a bear"], allowed=False) == ""


def test_all_of_them_is_an_error_unless_it_is_meant(tmp_path: Path) -> None:
    train = text_file(tmp_path / "train.txt", "a cat", "a dog")
    heldout = text_file(tmp_path / "heldout.txt", "A cat.", "a lake")
    message = r"prompts\.heldout: all 1 prompts .* such as 'A cat\.'; .*prompts\.heldout_may_overlap=true"
    with pytest.raises(ConfigError, match=message):
        check_overlap(train, heldout, ["A cat."], allowed=False)
    assert "as prompts.heldout_may_overlap=true allows" in check_overlap(train, heldout, ["A cat."], allowed=True)


def test_mixtures_and_worlds() -> None:
    train = MixturePrompts(shapes=ShapesPrompts("train", 3), animals=AnimalPrompts())
    assert count_overlap(train, AnimalPrompts(), [AnimalPrompts()[0][0]])[:4] == (45, 45, 1, 1)
    judged = [ShapesPrompts("train", 3)[1][0]]
    assert count_overlap(train, ShapesPrompts("train", 4), judged)[:4] == (4, 3, 1, 1)
    for world in (ShapesPrompts, GaussianMixturePrompts):
        unread = world("train", 5), world("heldout", 5)
        assert count_overlap(*unread, ["x"]) == (5, 0, 1, 0, "")
        assert not unread[0].is_disjoint(world("train", 6))


FILES = ("prompts=file", "experiment=shapes_smoke", "reward=redness")


@pytest.mark.parametrize("command", ["validate", "train"])
def test_one_file_for_both_does_not_start(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text_file(tmp_path / "all.txt", "a cat", "a dog")
    words = [command, *FILES, f"prompts.train.path={tmp_path}/all.txt", f"prompts.heldout.path={tmp_path}/all.txt"]
    assert prdp([*words, f"output_dir={tmp_path}/run"]) == 2
    assert "prompts.heldout: all 2 prompts that evaluations use are training prompts too" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_validate_tells_of_some(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text_file(tmp_path / "train.txt", "a cat", "a dog")
    text_file(tmp_path / "heldout.txt", "a cat", "a lake")
    words = ["validate", *FILES, f"prompts.train.path={tmp_path}/train.txt"]
    assert prdp([*words, f"prompts.heldout.path={tmp_path}/heldout.txt"]) == 0
    found = "warning: 1 of the 2 held-out prompts that evaluations use are training prompts too, such as 'a cat'"
    assert found in capsys.readouterr().out


def test_the_papers_small_scale_is_judged_on_its_training_prompts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model_folder: Path
) -> None:
    text_file(tmp_path / "animals.txt", *(AnimalPrompts()[i][0] for i in range(45)))
    file = f"{tmp_path}/animals.txt"
    paper = ["experiment=paper_small_scale", f"prompts.train.path={file}", f"prompts.heldout.path={file}"]
    for words in (paper, ["experiment=shapes_smoke", "prompts=animals"]):
        assert prdp(["validate", *words, "reward=redness", "model=shapes"]) == 0, capsys.readouterr().err
        assert "are training prompts too" in capsys.readouterr().out


def test_a_saved_dataset_has_the_one_split_that_it_has(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    one = datasets.Dataset.from_dict({"text": ["a cat"]}, split="train")
    one.save_to_disk(tmp_path / "one")
    assert HfDatasetPrompts(str(tmp_path / "one"), split="train").fingerprint
    for split in ("test", "train[:50%]"):
        with pytest.raises(ValueError, match="holds a single split, train; split must be null or its name, got t"):
            HfDatasetPrompts(str(tmp_path / "one"), split=split)


def test_other_held_out_prompts_are_refused_at_resume_and_the_permission_may_change() -> None:
    with pytest.raises(CheckpointError, match=r"prompts\.heldout holds other prompts .* \(fingerprint a then, b now\)"):
        check_same_prompts("a", "b", "heldout")
    check_same_prompts("", "b", "heldout")
    before = asdict(TrainConfig())
    check_compatible(before, {**before, "prompts": {**before["prompts"], "heldout_may_overlap": True}})
