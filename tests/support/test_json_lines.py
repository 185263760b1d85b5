"""JSON lines: what Unicode calls a line end is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prdp.support.json_lines import json_line, read_json_lines


@settings(deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8")), max_size=5))
def test_any_text_comes_back_from_any_reader(texts: list[str]) -> None:
    written = "".join(json_line({"text": text}) for text in texts)
    assert [json.loads(line)["text"] for line in written.splitlines()] == texts
    assert [json.loads(line)["text"] for line in written.split("\n")[:-1]] == texts


def test_lines_written_unescaped_are_read_whole(tmp_path: Path) -> None:
    texts = ["\u2028", "a\x85b", "\x0c", "\x1c\x1d\x1e", "\u2029\x0b", "NaN", "plain"]
    file = tmp_path / "lines.jsonl"
    file.write_text("".join(json.dumps(text, ensure_ascii=False) + "\n" for text in texts) + "\n", encoding="utf-8")
    assert read_json_lines(file, str) == texts


def test_damage_is_named_and_a_cut_end_may_be_left_out(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    file.write_text('{"a": 1}\n{"b": 2}\n{"a')
    with pytest.raises(ValueError, match=r"lines\.jsonl line 2 is damaged: it lacks 'a'"):
        read_json_lines(file, lambda line: line["a"], cut_off=True)
    assert read_json_lines(file, dict, cut_off=True) == [{"a": 1}, {"b": 2}]
    with pytest.raises(ValueError, match=r"lines\.jsonl line 3 is damaged"):
        read_json_lines(file, dict)
    with pytest.raises(FileNotFoundError):
        read_json_lines(tmp_path / "none.jsonl", dict)
