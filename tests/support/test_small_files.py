"""Small files that would become large in memory: refused by name before they do."""

from __future__ import annotations

import gzip
import io
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from prdp.checkpoints.log_archive import check_logs
from prdp.prompts import files
from prdp.prompts.csv_file import CsvFilePrompts
from prdp.prompts.json_file import JsonFilePrompts
from prdp.prompts.text_file import TextFilePrompts
from prdp.reports.pictures import data_uri
from prdp.support.picture_files import opened_picture


def peak_of(action: Callable[[], object]) -> int:
    """Most bytes that Python held during an action that raises ValueError."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError):
            action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def packed(size: int, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive, archive.open("metrics.jsonl", "w", force_zip64=True) as file:
        for _ in range(size // 2**20):
            file.write(bytes(2**20))
    return buffer.getvalue()


def test_an_archive_that_unpacks_to_a_thousand_times_its_size_is_damaged() -> None:
    bomb = packed(100 * 2**20)
    assert len(bomb) < 200_000
    with pytest.raises(ValueError, match=r"not a whole zip archive: \d+ bytes would become 104857600, more than the"):
        check_logs(bomb)
    assert peak_of(lambda: check_logs(bomb)) < 4 * 2**20


def test_an_archive_that_lies_about_its_size_stops_there() -> None:
    bomb = bytearray(packed(100 * 2**20))
    true, small = (100 * 2**20).to_bytes(4, "little"), (1000).to_bytes(4, "little")
    assert bomb.count(true)
    assert peak_of(lambda: check_logs(bytes(bomb.replace(true, small)))) < 4 * 2**20


def chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


@pytest.mark.parametrize("side", [9_000, 60_000])
def test_a_picture_that_declares_a_huge_size_is_no_picture(tmp_path: Path, side: int) -> None:
    header = side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(1000))), chunk(b"IEND", b""))
    file = tmp_path / "000_0.png"
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    with pytest.raises(ValueError, match=r"000_0\.png is not a whole picture: .*pixels"):
        data_uri(file)
    assert peak_of(lambda: data_uri(file)) < 4 * 2**20


def test_other_formats_are_no_pictures_and_whole_ones_are(tmp_path: Path) -> None:
    from PIL import Image

    picture = Image.fromarray(np.full((4, 5, 3), 7, np.uint8))
    for name in ("a.png", "a.tiff", "a.gif"):
        picture.save(tmp_path / name)
    with opened_picture(tmp_path / "a.png") as image:
        assert np.asarray(image).shape == (4, 5, 3)
    for name in ("a.tiff", "a.gif"):
        with pytest.raises(ValueError, match="is not a whole picture"), opened_picture(tmp_path / name):
            pass


def test_a_line_without_end_stops_the_readers_of_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LONGEST_LINE", 1_000_000)
    monkeypatch.setattr(files, "LONGEST_TEXT", 2_000_000)
    sources: list[tuple[str, bytes, Callable[[str], object], str]] = [
        ("a.txt.gz", b"a fox\n", TextFilePrompts, "has a line of more than 1000000 characters"),
        ("a.csv.gz", b"prompt\n", CsvFilePrompts, "has a line of more than 1000000 characters"),
        ("a.jsonl.gz", b'{"prompt": "a fox"}\n', JsonFilePrompts, "has a line of more than 1000000 characters"),
        ("a.json.gz", b"[", JsonFilePrompts, "has more than 2000000 characters, too many for one document"),
    ]
    for name, start, source, message in sources:
        with gzip.open(tmp_path / name, "wb") as file:
            file.write(start + b"x" * 30_000_000)
        with pytest.raises(ValueError, match=message):
            source(str(tmp_path / name))
        assert peak_of(lambda path=str(tmp_path / name), source=source: source(path)) < 24_000_000
