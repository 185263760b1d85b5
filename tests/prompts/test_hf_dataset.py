"""Hugging Face datasets: saved to disk, folders of data files, and hub names without a network."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from prdp.prompts.any_file import open_prompts
from prdp.prompts.hf_dataset import HfDatasetPrompts

datasets = pytest.importorskip("datasets")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Two splits with a column that JSON cannot hold."""
    train = {"caption": ["a cat", "a dog", "a cat"], "style": ["photo", "art", "art"], "jpg_0": [b"\xff"] * 3}
    splits = {"train": datasets.Dataset.from_dict(train), "test": datasets.Dataset.from_dict({"caption": ["a fox"]})}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


def test_saved_to_disk(saved: Path) -> None:
    source = HfDatasetPrompts(str(saved), split="train", category_column="style", unique=True)
    assert [source[i] for i in range(len(source))] == [
        ("a cat", {"category": "photo"}),
        ("a dog", {"category": "art"}),
    ]
    assert list(open_prompts(str(saved), split="test").texts()) == ["a fox"]


def test_a_built_table_opens_without_the_library(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = HfDatasetPrompts(str(saved), split="test")
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert HfDatasetPrompts(str(saved), split="test").fingerprint == before.fingerprint
    with pytest.raises(ValueError, match=r"needs the library datasets: pip install 'prdp\[datasets\]'"):
        HfDatasetPrompts(str(saved), split="train")


def test_a_folder_of_data_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.csv").write_text("text,n\na cat,1\n")
    (folder / "test.csv").write_text("text,n\na dog,2\n")
    assert HfDatasetPrompts(str(folder), split="test", metadata_columns=["n"])[0] == ("a dog", {"n": 2})


def test_what_is_not_there_is_named(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="split validation: split must name one of train, test, got validation"):
        HfDatasetPrompts(str(saved), split="validation")
    with pytest.raises(ValueError, match="split must name one of train, test, got None"):
        HfDatasetPrompts(str(saved))
    with pytest.raises(ValueError, match="no column 'prompt'; there are caption, style, jpg_0"):
        HfDatasetPrompts(str(saved), split="train", prompt_column="prompt")
    with pytest.raises(ValueError, match="split train row 1: column 'jpg_0' holds bytes"):
        HfDatasetPrompts(str(saved), split="train", metadata_columns="all")


def test_offline_a_hub_name_says_why_it_is_not_found() -> None:
    with pytest.raises(ValueError, match=r"dataset nobody/nothing, split train cannot be loaded .*HF_HUB_OFFLINE=1"):
        HfDatasetPrompts("nobody/nothing", split="train")


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("ds.py", b"", r"scripts are no longer supported, but found ds\.py"),
        ("README.md", b"---\nconfigs: [\n---\n", "ParserError"),
        ("README.md", b"---\na: " + b"[" * 3000 + b"\n---\n", "RecursionError"),
        ("a.zip", b"PK", "File is not a zip file"),
        ("a.jsonl.gz", b"\x1f\x8b", "EOFError"),
    ],
)
def test_what_the_library_cannot_load_is_told_in_a_line(tmp_path: Path, file: str, content: bytes, says: str) -> None:
    folder = tmp_path / "ds"
    folder.mkdir()
    if not file.startswith("a."):
        (folder / "prompts.jsonl").write_text('{"text": "a cat"}\n')
    (folder / file).write_bytes(content)
    with pytest.raises(ValueError, match=rf"^dataset .*ds, split train cannot be loaded.*{says}"):
        HfDatasetPrompts(str(folder), split="train")
