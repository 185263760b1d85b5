"""Prompts from text files: lines, encodings, several files."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from prdp.prompts.text_file import TextFilePrompts


def test_lines_with_a_template(tmp_path: Path) -> None:
    file = tmp_path / "animals.txt"
    file.write_bytes(b"\xef\xbb\xbfcat\r\n\n  dog \n")
    source = TextFilePrompts(str(file), template="A painting of a {}")
    assert [source[i] for i in range(len(source))] == [("A painting of a cat", {}), ("A painting of a dog", {})]
    assert source[-1] == source[1]
    with pytest.raises(IndexError, match="index 2 is outside a table of 2 prompts"):
        source[2]


def test_several_files_and_their_names(tmp_path: Path) -> None:
    (tmp_path / "color_val.txt").write_text("a red cat\na blue dog\n")
    with gzip.open(tmp_path / "shape_val.txt.gz", "wt") as file:
        file.write("a round dog\na red cat\n")
    source = TextFilePrompts(str(tmp_path / "*_val.txt*"), file_as_category=True)
    assert [metadata["category"] for metadata in source.metadata()] == ["color_val"] * 2 + ["shape_val"] * 2
    once = TextFilePrompts([str(tmp_path / "color_val.txt"), str(tmp_path / "shape_val.txt.gz")], unique=True)
    assert list(once.texts()) == ["a red cat", "a blue dog", "a round dog"]


def test_another_encoding(tmp_path: Path) -> None:
    file = tmp_path / "latin.txt"
    file.write_bytes("café\n".encode("latin-1"))
    assert TextFilePrompts(str(file), encoding="latin-1")[0][0] == "café"
    with pytest.raises(ValueError, match="encoding is 'latin-eins'"):
        TextFilePrompts(str(file), encoding="latin-eins")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"ab\nc\xff\n", r"bad\.txt is not UTF-8 text: line 2, byte 1 of it"),
        ("cat\n".encode("utf-16"), r"bad\.txt is UTF-16 text, expected UTF-8"),
        (b"", r"bad\.txt is empty"),
        (b"\n \n", r"bad\.txt holds no prompt"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "bad.txt"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        TextFilePrompts(str(file))


def test_paths_and_templates_that_are_refused(tmp_path: Path) -> None:
    (tmp_path / "animals.txt").write_text("cat\n")
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(b"cat\n" * 100)[:-12])
    for path, message in (
        ("nothing.txt", "cannot be read: No such file"),
        ("*.text", "matches no file"),
        ("", "is a folder, expected a file"),
        ("cut.txt.gz", r"cut\.txt\.gz cannot be read"),
    ):
        with pytest.raises(ValueError, match=message):
            TextFilePrompts(str(tmp_path / path))
    with pytest.raises(ValueError, match="empty list"):
        TextFilePrompts([])
    with pytest.raises(ValueError, match="template is 'animal'"):
        TextFilePrompts(str(tmp_path / "animals.txt"), template="animal")
