"""What Python's csv and json modules and pyarrow write, the readers read: the same prompts, whatever is in them."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prdp.prompts.any_file import open_prompts

ODD = ["\u2028", "\x85", "\x0c", "\x0b", "\x1c", "\u2029", '"', '""', "\t", ",", "'", "\\", "\ufeff", "\u202e", "猫"]
ENDS = ["\r", "\n", "\r\n", " "]
LETTERS = st.one_of(st.sampled_from([*ODD, *ENDS]), st.characters(codec="utf-8", exclude_characters="\0"))
TEXTS = st.lists(st.lists(LETTERS, max_size=6).map("".join), min_size=1, max_size=6).filter(
    lambda texts: any(text.strip() for text in texts)
)
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be")
FORMATS = st.fixed_dictionaries(
    {
        "encoding": st.sampled_from(ENCODINGS),
        "end": st.sampled_from(["\n", "\r\n", "\r"]),
        "gz": st.booleans(),
        "ascii": st.booleans(),
    }
)
quickly = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
numbers = itertools.count()


def stripped(texts: Sequence[str]) -> list[str]:
    return [text.strip() for text in texts if text.strip()]


def read(folder: Path, ending: str, content: str, form: dict[str, Any], **options: Any) -> list[str]:
    """The prompts of a file with that content in the encoding of `form`."""
    raw = content.encode(form["encoding"])
    file = folder / f"{next(numbers)}{ending}{'.gz' if form['gz'] else ''}"
    file.write_bytes(gzip.compress(raw) if form["gz"] else raw)
    return list(open_prompts(str(file), encoding=form["encoding"], **options).texts())


def as_text(texts: list[str], form: dict[str, Any]) -> tuple[str, str, list[str], dict[str, Any]]:
    lines = [text.replace("\r", "").replace("\n", "") for text in texts]
    # A line that starts with U+FEFF in the first place is a byte-order mark.
    return ".txt", form["end"].join(["first", *lines]), ["first", *stripped(lines)], {}


def as_csv(texts: list[str], form: dict[str, Any]) -> tuple[str, str, list[str], dict[str, Any]]:
    return ".csv", _csv(texts, form, csv.excel), stripped(texts), {"skip_empty": True}


def as_tsv(texts: list[str], form: dict[str, Any]) -> tuple[str, str, list[str], dict[str, Any]]:
    return ".tsv", _csv(texts, form, csv.excel_tab), stripped(texts), {"skip_empty": True, "quoting": True}


def _csv(texts: list[str], form: dict[str, Any], dialect: Any) -> str:
    buffer = io.StringIO(newline="")
    # With another line end than its own, the module leaves '\r' or '\n' in a field without quotes.
    quoting = csv.QUOTE_MINIMAL if form["end"] == "\r\n" else csv.QUOTE_ALL
    writer = csv.writer(buffer, dialect, lineterminator=form["end"], quoting=quoting)
    writer.writerows([["n", "prompt"], *enumerate(texts)])
    return buffer.getvalue()


def as_json_lines(texts: list[str], form: dict[str, Any]) -> tuple[str, str, list[str], dict[str, Any]]:
    lines = [json.dumps({"prompt": text}, ensure_ascii=form["ascii"]) for text in [*texts, None]]
    return ".jsonl", form["end"].join(lines), stripped(texts), {"skip_empty": True}


def as_json_list(texts: list[str], form: dict[str, Any]) -> tuple[str, str, list[str], dict[str, Any]]:
    return ".json", json.dumps(texts, ensure_ascii=form["ascii"], indent=1), stripped(texts), {"skip_empty": True}


@pytest.mark.parametrize("write", [as_text, as_csv, as_tsv, as_json_lines, as_json_list])
@given(texts=TEXTS, form=FORMATS)
@quickly
def test_the_same_prompts_come_back(write: Callable[..., Any], texts: list[str], form: dict, tmp_path: Path) -> None:
    ending, content, expected, options = write(texts, form)
    assert read(tmp_path, ending, content, form, **options) == expected


@given(texts=TEXTS)
@quickly
def test_parquet_too(texts: list[str], tmp_path: Path) -> None:
    file = tmp_path / f"{next(numbers)}.parquet"
    parquet.write_table(pa.table({"prompt": [*texts, None]}), file)
    assert list(open_prompts(str(file), skip_empty=True).texts()) == stripped(texts)


def test_line_ends_at_the_borders_of_what_is_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = "ä\r\nb\n\rc\r\r\nd"
    for size in range(1, 9):
        monkeypatch.setattr("prdp.prompts.files._CHUNK", size)
        for encoding in ("utf-8", "utf-16", "utf-8-sig"):
            form = {"encoding": encoding, "gz": False}
            if size >= 4:
                assert read(tmp_path, ".txt", content, form) == ["ä", "b", "c", "d"]
            (tmp_path / f"{size}{encoding}.txt").write_bytes(b"a\r\n\rb\r\xff")
        with pytest.raises(ValueError, match="line 4, byte 6 of the file"):
            open_prompts(str(tmp_path / f"{size}utf-8.txt"))
