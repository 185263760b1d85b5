"""Prompts from text files: lines, encodings, several files."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest

from prdp.prompts import files
from prdp.prompts.any_file import open_prompts
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
        (b"ab\nc\xff\n", r"bad\.txt is not UTF-8 text: line 2, byte 4 of the file; encoding=\.\.\. names another"),
        ("cat\n".encode("utf-16"), r"bad\.txt is UTF-16 text by .*, expected UTF-8; encoding=utf-16 reads it"),
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
    with pytest.raises(ValueError, match=r"path is 5 \(int\), expected a list of texts"):
        TextFilePrompts(5)
    with pytest.raises(ValueError, match="empty list"):
        TextFilePrompts([])
    with pytest.raises(ValueError, match="template is 'animal'"):
        TextFilePrompts(str(tmp_path / "animals.txt"), template="animal")


@pytest.mark.parametrize("name", ["a.txt.gz", "a.csv.gz", "a.json.gz", "a.jsonl.gz"])
def test_archives_that_unpack_to_a_thousand_times_their_size_are_refused(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = {"a.json.gz": b"[],", "a.jsonl.gz": b'"a cat"\n'}.get(name, b"prompt\n")
    content = b"[" * name.endswith("json.gz") + line * 500_000
    (tmp_path / name).write_bytes(gzip.compress(content, 9))
    monkeypatch.setattr(files, "UNPACKED_BYTES", 2**20)
    with pytest.raises(ValueError, match=rf"{name} unpacks to more than \d+ bytes, 200 times its size"):
        open_prompts(str(tmp_path / name))
    words = np.random.default_rng(0).integers(97, 123, size=(40_000, 40), dtype=np.uint8)
    (tmp_path / "real.txt.gz").write_bytes(gzip.compress(b"\n".join(row.tobytes() for row in words)))
    assert len(open_prompts(str(tmp_path / "real.txt.gz"))) == 40_000


def test_lines_end_as_python_reads_them_and_nowhere_else(tmp_path: Path) -> None:
    file = tmp_path / "mac.txt"
    file.write_bytes("cat\rdog\r\nbear\u2028in\x85a\x0ccave\nfox".encode())
    assert list(TextFilePrompts(str(file)).texts()) == ["cat", "dog", "bear\u2028in\x85a\x0ccave", "fox"]


@pytest.mark.parametrize(
    ("content", "encoding", "message"),
    [
        ("cat\ndog\n".encode("utf-16-le"), "utf-8", r"line 1 holds a NUL .*; encoding=utf-16-le reads UTF-16 without"),
        ("cat\ndog\n".encode("utf-16-be"), "utf-8", r"line 1 holds a NUL .*; encoding=utf-16-be reads UTF-16 without"),
        ("cät\n".encode("utf-16-le"), "utf-8", r"is not UTF-8 text: line 1, byte 2 .*; encoding=utf-16-le reads"),
        ("cat\ndog\n".encode("utf-32-le"), "utf-8", r"line 1 holds a NUL .*; encoding=utf-32-le reads UTF-32 without"),
        ("cat\ndog\n".encode("utf-32-be"), "utf-8", r"line 1 holds a NUL .*; encoding=utf-32-be reads UTF-32 without"),
        ("кот и собака\n".encode("utf-16-le"), "latin-1", r"line 1 holds a NUL .*; encoding=utf-16-le reads"),
        (b"cat\nd\0g\n\0", "latin-1", r"odd\.txt line 2 holds a NUL byte, .*; remove it$"),
        (b"a cat\na d\0og\n", "utf-8", r"odd\.txt line 2 holds a NUL byte, which is no part of a prompt; remove it$"),
        (b"\0a cat\nan owl\n" * 9, "utf-8", r"odd\.txt line 1 holds a NUL byte, .*; remove it$"),
        ("a cat\na d\0og\n".encode("utf-16-le"), "utf-16-le", r"odd\.txt line 2 holds a NUL byte, .*; remove it$"),
        (b"a \0cat\na d\xffog\n", "utf-8", r"line 2, byte 10 of the file; encoding=\.\.\. names another encoding$"),
        ("cat\n".encode("utf-8-sig"), "latin-1", r"is UTF-8 text by its first bytes, expected LATIN-1; encoding=utf-8"),
        ("cat\n".encode("utf-32"), "utf-16", r"is UTF-32 text by its first bytes, expected UTF-16; encoding=utf-32"),
        (b"cat\n", "utf-16", r"odd\.txt has no byte-order mark, .*; encoding=utf-16-le or utf-16-be reads it without"),
        ("cat\n".encode("utf-16") + b"x", "utf-16", r"odd\.txt is not UTF-16 text: line 2, byte 10 of the file"),
        (b"cat", "base64", "encoding is 'base64', which Python does not know"),
    ],
)
def test_other_encodings_are_told(tmp_path: Path, content: bytes, encoding: str, message: str) -> None:
    file = tmp_path / "odd.txt"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        TextFilePrompts(str(file), encoding=encoding)


def test_quotes_around_every_line_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "quoted.txt").write_text('"a cat"\n\n"a dog"\n')
    assert TextFilePrompts(str(tmp_path / "quoted.txt"))[0][0] == '"a cat"'
    assert "all 2 prompts stand in double quotes" in caplog.text
    caplog.clear()
    (tmp_path / "bare.txt").write_text('"a cat"\na "dog"\n')
    assert len(TextFilePrompts(str(tmp_path / "bare.txt"))) == 2 and caplog.text == ""


def test_what_is_no_plain_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    for path, message in (
        (str(tmp_path / "pipe.txt"), r"pipe\.txt is a pipe, expected a file"),
        ("/dev/zero", "/dev/zero is a device, expected a file"),
        (f"{tmp_path}/{'a' * 300}.txt", "cannot be read: File name too long"),
        (f"{tmp_path}/a\0b.txt", "cannot be read: embedded null byte"),
    ):
        with pytest.raises(ValueError, match=message):
            TextFilePrompts(path)
