"""CSV that a spreadsheet opens without running anything, and that gives every text back."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prdp.evaluation.spreadsheet import csv_text, from_cell, to_cell

START = "=+-@\t\r\n\uff1d\uff0b\uff0d\uff20"
TEXTS = st.text(st.one_of(st.sampled_from([*START, "'", '"', ",", "x"]), st.characters(codec="utf-8")), max_size=6)


@pytest.mark.parametrize("text", ['=HYPERLINK("http://x")', "+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "＝1"])
def test_formulas_get_an_apostrophe(text: str) -> None:
    assert to_cell(text) == f"'{text}" and from_cell(to_cell(text)) == text


@given(TEXTS)
@settings(max_examples=200, derandomize=True, deadline=None)
def test_no_cell_starts_a_formula_and_every_text_comes_back(text: str) -> None:
    cell = to_cell(text)
    assert cell[:1] not in list(START) and from_cell(cell) == text


def test_numbers_stay_numbers_and_names_of_columns_are_texts() -> None:
    rows = [{"=model": "@base", "score": -0.5, "n": -3, "collapsed": True, "nan": float("nan"), "text": "it's\r\n=1"}]
    text = csv_text(rows)
    assert text == '"\'=model","score","n","collapsed","nan","text"\n"\'@base",-0.5,-3,True,nan,"it\'s\r\n=1"\n'
    [header, row] = csv.reader(io.StringIO(text, newline=""))
    assert dict(zip(map(from_cell, header), map(from_cell, row), strict=True))["text"] == "it's\r\n=1"


@given(st.lists(TEXTS, min_size=1, max_size=4))
@settings(max_examples=100, derandomize=True, deadline=None)
def test_the_csv_module_reads_every_text_back(texts: list[str]) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text([{"prompt": text, "n": 1} for text in texts]), newline="")))
    assert [from_cell(row["prompt"]) for row in rows] == texts
