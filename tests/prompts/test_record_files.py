"""CSV, TSV, JSON, JSON lines and Parquet: columns, metadata, and what is refused with file and line."""

from __future__ import annotations

import csv
import datetime
import decimal
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from prdp.prompts.any_file import open_prompts, parse_options
from prdp.prompts.arrow_records import arrow_records
from prdp.prompts.csv_file import CsvFilePrompts
from prdp.prompts.json_file import JsonFilePrompts
from prdp.prompts.parquet_file import ParquetFilePrompts
from prdp.prompts.table import PromptTable


def items(source: PromptTable) -> list[tuple[str, dict[str, Any]]]:
    return [source[index] for index in range(len(source))]


def test_csv(tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    file.write_text('Prompt,Category,Note\n"a cat, a dog",Animals,\n\n"two\nlines",World,"say ""hi"""\n')
    expected = [
        ("a cat, a dog", {"Note": "", "category": "Animals"}),
        ("two\nlines", {"Note": 'say "hi"', "category": "World"}),
    ]
    assert items(CsvFilePrompts(str(file), category_column="Category", metadata_columns=["Note"])) == expected
    everything = CsvFilePrompts(str(file), metadata_columns="all")[0]
    assert everything == ("a cat, a dog", {"Category": "Animals", "Note": ""})


def test_tsv_without_header_takes_quotes_as_letters(tmp_path: Path) -> None:
    file = tmp_path / "train.tsv"
    file.write_text('coco\t"Hello" on a sign\nweb\ta cat\n')
    source = CsvFilePrompts(str(file), columns=["source", "prompt"], metadata_columns=["source"])
    assert items(source) == [('"Hello" on a sign', {"source": "coco"}), ("a cat", {"source": "web"})]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("prompt,style\na cat\n", {}, r"list\.csv line 2: 1 fields, expected 2 \(prompt, style\)"),
        ("prompt\n ''\n  \n", {"category_column": "styel"}, "no column 'styel'; there are prompt"),
        ("caption,text\na,b\n", {}, "prompt_column must name the prompt's column; there are caption, text"),
        ("name\na\n", {}, "must name the prompt's column; there are name"),
        ("prompt\na\n", {"prompt_column": "promt"}, "no column 'promt'; there are prompt. Did you mean 'prompt'"),
        ("prompt,n\na,1\n,2\n", {}, r"list\.csv line 3: the prompt is empty"),
        ('prompt\n"a cat\n', {}, r"list\.csv line 2: unexpected end of data"),
        ("prompt\n", {}, r"list\.csv holds no prompt"),
        ("prompt\na\n", {"delimiter": "||"}, "delimiter is '||', expected one character"),
        ("prompt\na\n", {"metadata_columns": "style"}, "metadata_columns is 'style', expected a list of columns"),
    ],
)
def test_csv_that_is_refused(tmp_path: Path, content: str, options: dict[str, Any], message: str) -> None:
    file = tmp_path / "list.csv"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        CsvFilePrompts(str(file), **options)


def test_json_lines(tmp_path: Path) -> None:
    file = tmp_path / "list.jsonl"
    rows = [{"tag": "one", "prompt": "a cat", "include": [{"class": "cat"}]}, {"prompt": "a dog", "exclude": [1.5]}]
    file.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    source = JsonFilePrompts(str(file), category_column="tag", metadata_columns="all")
    assert items(source) == [
        ("a cat", {"tag": "one", "include": [{"class": "cat"}], "category": "one"}),
        ("a dog", {"exclude": [1.5]}),
    ]


def test_json_lists_of_texts_and_of_objects(tmp_path: Path) -> None:
    (tmp_path / "anime.json").write_text('["a cat", "a dog"]')
    assert items(JsonFilePrompts(str(tmp_path / "anime.json"), file_as_category=True)) == [
        ("a cat", {"category": "anime"}),
        ("a dog", {"category": "anime"}),
    ]
    pairs = [{"prompt": "a cat", "human_preference": [1, 0]}, {"prompt": "a cat"}, {"prompt": "a dog"}]
    (tmp_path / "train.json").write_text(json.dumps(pairs))
    assert list(JsonFilePrompts(str(tmp_path / "train.json"), unique=True).texts()) == ["a cat", "a dog"]


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.jsonl", '{"prompt": "x"}\n{"prompt": \n', {}, r"line 2 is not JSON: Expecting value, column 11"),
        ("a.jsonl", "[" * 100_000, {}, r"a\.jsonl line 1 is not JSON: maximum recursion depth"),
        ("a.jsonl", '{"prompt": "x"}\n[1]\n', {}, r"a\.jsonl line 2: the record is a list, expected a JSON object"),
        ("a.jsonl", '{"prompt": "x"}\n{"text": "y"}\n', {}, r"line 2: there is no column 'prompt'; there are text"),
        ("a.jsonl", '{"prompt": 3}\n', {}, r"a\.jsonl line 1: the prompt is 3, expected text"),
        ("a.jsonl", '{"prompt": "\\ud800"}\n', {}, r"a\.jsonl line 1: holds half of a surrogate pair"),
        ("a.jsonl", '{"prompt": "x"}\n', {"metadata_columns": ["tags"]}, "no column 'tags'; there are prompt"),
        ("a.json", '{"prompt": "x"}\n{"prompt": "y"}\n', {}, r"a\.json is not JSON: .*called \.jsonl"),
        ("a.json", '{"prompt": "x"}', {}, r"a\.json: the record is an object, expected a JSON list"),
        ("a.json", '["x", null]', {}, r"a\.json entry 2: the record is null"),
        ("a.json", "[]", {}, r"a\.json holds no prompt"),
    ],
)
def test_json_that_is_refused(tmp_path: Path, name: str, content: str, options: dict[str, Any], message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        JsonFilePrompts(str(tmp_path / name), **options)


def test_parquet(tmp_path: Path) -> None:
    file = tmp_path / "pairs.parquet"
    columns = {
        "caption": ["a cat", "a cat", "a dog"],
        "jpg_0": [b"\xff", b"\xff", b"\xff"],
        "questions": [[{"id": 1}], [], None],
        "day": [datetime.date(2024, 2, 3)] * 3,
        "score": [0.5, float("nan"), 2.0],
    }
    parquet.write_table(pa.table(columns), file, row_group_size=1)
    source = ParquetFilePrompts(str(file), metadata_columns=["questions", "day", "score"])
    assert items(source) == [
        ("a cat", {"questions": [{"id": 1}], "day": "2024-02-03", "score": 0.5}),
        ("a cat", {"questions": [], "day": "2024-02-03", "score": None}),
        ("a dog", {"questions": None, "day": "2024-02-03", "score": 2.0}),
    ]
    assert len(ParquetFilePrompts(str(file), unique=True)) == 2
    with pytest.raises(ValueError, match=r"row 1: column 'jpg_0' holds bytes b'\\xff', which cannot travel"):
        ParquetFilePrompts(str(file), metadata_columns="all")
    with pytest.raises(ValueError, match="no column 'prompts'; there are caption, jpg_0, questions, day, score"):
        ParquetFilePrompts(str(file), prompt_column="prompts")
    (tmp_path / "cut.parquet").write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"cut\.parquet is no whole Parquet file"):
        ParquetFilePrompts(str(tmp_path / "cut.parquet"))


def test_a_tsv_of_pythons_csv_module_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "list.tsv"
    with file.open("w", newline="") as out:
        csv.writer(out, csv.excel_tab).writerows([["prompt", "n"], ['a "red" cat', 1], ["a dog", 2]])
    assert list(CsvFilePrompts(str(file)).texts()) == ['"a ""red"" cat"', "a dog"]
    assert "in 1 of 2 records a field stands in double quotes" in caplog.text and "quoting=true reads" in caplog.text
    caplog.clear()
    assert list(CsvFilePrompts(str(file), quoting=True).texts()) == ['a "red" cat', "a dog"] and caplog.text == ""
    with file.open("a", newline="") as out:
        csv.writer(out, csv.excel_tab).writerow(["tab\tin it", 3])
    with pytest.raises(ValueError, match=r"line 4: 3 fields, expected 2 \(prompt, n\); quoting=true reads fields in"):
        CsvFilePrompts(str(file))


@pytest.mark.parametrize("options", [{}, {"prompt_column": "prompt"}, {"category_column": "style"}])
def test_a_header_in_quotes_is_told_of(tmp_path: Path, options: dict[str, Any]) -> None:
    file = tmp_path / "list.tsv"
    with file.open("w", newline="") as out:
        csv.writer(out, csv.excel_tab, quoting=csv.QUOTE_ALL).writerows([["prompt", "style"], ["a cat", "art"]])
    message = r"list\.tsv: .*there are \"prompt\", \"style\".*[;?] quoting=true reads fields in double quotes$"
    with pytest.raises(ValueError, match=message):
        CsvFilePrompts(str(file), **options)
    assert list(CsvFilePrompts(str(file), quoting=True, **options).texts()) == ["a cat"]


def test_quotes_around_metadata_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "list.tsv").write_text('prompt\tnote\na cat\t"so ""called"" art"\na dog\tx\n')
    assert len(CsvFilePrompts(str(tmp_path / "list.tsv"))) == 2 and caplog.text == ""
    assert len(CsvFilePrompts(str(tmp_path / "list.tsv"), metadata_columns=["note"])) == 2
    assert "in 1 of 2 records a field stands in double quotes" in caplog.text


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ";"), ("a.csv", "\t"), ("a.tsv", ","), ("a.csv", "|")])
def test_another_delimiter_is_told_of(tmp_path: Path, name: str, delimiter: str) -> None:
    (tmp_path / name).write_text(f"prompt{delimiter}n\na cat{delimiter}1\n")
    with pytest.raises(ValueError, match=f"delimiter={re.escape(json.dumps(delimiter))} divides this line"):
        CsvFilePrompts(str(tmp_path / name))
    told = parse_options([f"delimiter={json.dumps(delimiter)}"])
    assert list(open_prompts(str(tmp_path / name), **told).texts()) == ["a cat"]


def test_long_fields_of_columns_that_nobody_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    file.write_text(f'prompt,page\na cat,{"x" * 140_000}\n"a\ndog",y\n')
    assert list(CsvFilePrompts(str(file)).texts()) == ["a cat", "a\ndog"]


def test_columns_of_one_name_are_refused_when_they_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("prompt,n,n\na cat,1,2\n")
    assert len(CsvFilePrompts(str(tmp_path / "list.csv"))) == 1
    with pytest.raises(ValueError, match=r"list\.csv: there are 2 columns 'n', expected one"):
        CsvFilePrompts(str(tmp_path / "list.csv"), metadata_columns=["n"])


def test_arrow_values_that_python_cannot_hold_are_named(tmp_path: Path) -> None:
    file = tmp_path / "times.parquet"
    times = pa.array([0, None, 10**12], pa.timestamp("s"))
    parquet.write_table(pa.table({"prompt": ["a", "b", "c"], "when": times, "n": [1, 2, 3]}), file)
    assert len(ParquetFilePrompts(str(file), metadata_columns=["n"])) == 3
    message = r"times\.parquet row 3: column 'when' holds the timestamp\[ms\] '<value out of .*', expected a value"
    with pytest.raises(ValueError, match=message):
        ParquetFilePrompts(str(file), metadata_columns="all")
    with pytest.raises(ValueError, match=r"times\.parquet row 1: the prompt is 1, expected text in column 'n'"):
        ParquetFilePrompts(str(file), prompt_column="n")


def nested(kind: pa.DataType, fine: int) -> dict[str, pa.Array]:
    """Two rows of each way to nest a value, of which the second is `fine`."""
    flat = pa.array([1000, fine], kind)
    return {
        "flat": flat,
        "list": pa.array([[1000], [1000, fine]], pa.list_(kind)),
        "three": pa.array([[1000], [fine]], pa.list_(kind, 1)),
        "large": pa.array([None, [fine]], pa.large_list(kind)),
        "struct": pa.array([{"at": None}, {"at": fine}], pa.struct([("at", kind)])),
        "map": pa.array([[], [("at", fine)]], pa.map_(pa.string(), kind)),
        "dictionary": flat.dictionary_encode(),
    }


@pytest.mark.parametrize("kind", [pa.time64("ns"), pa.timestamp("ns"), pa.timestamp("ns", "UTC")], ids=str)
def test_nanoseconds_are_refused_by_row_and_never_rounded(kind: pa.DataType) -> None:
    for name, column in nested(kind, fine=1001).items():
        batch = pa.record_batch({name: column})
        message = rf"times row 2: column '{name}' holds the .*would lose data"
        with pytest.raises(ValueError, match=message):
            list(arrow_records("times", [batch]))
    times = {name: list(arrow_records("times", [pa.record_batch({name: column})]))[1][0][name]
             for name, column in nested(kind, fine=2000).items()}  # fmt: skip
    whole = times["flat"]
    assert isinstance(whole, datetime.time | datetime.datetime) and whole.microsecond == 2
    assert times == {
        "flat": whole, "list": [whole.replace(microsecond=1), whole], "three": [whole], "large": [whole],
        "struct": {"at": whole}, "map": [("at", whole)], "dictionary": whole,
    }  # fmt: skip


def test_decimals_of_more_digits_than_a_float_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "prices.parquet"
    kind = pa.decimal128(38, 20)
    decimals = [decimal.Decimal("0.1"), decimal.Decimal("12345678.25"), None]
    parquet.write_table(pa.table({"prompt": ["a", "b", "c"], "price": pa.array(decimals, kind)}), file)
    assert [m["price"] for m in ParquetFilePrompts(str(file), metadata_columns="all").metadata()] == [
        0.1, 12345678.25, None,
    ]  # fmt: skip
    decimals[1] = decimal.Decimal("0.12345678901234567890")
    parquet.write_table(pa.table({"prompt": ["a", "b", "c"], "price": pa.array(decimals, kind)}), file)
    with pytest.raises(ValueError, match=r"row 2: column 'price' holds the decimal 0\.12345678901234567890, expected"):
        ParquetFilePrompts(str(file), metadata_columns="all")


def test_texts_that_are_no_prompts_by_their_length_are_refused_by_row(tmp_path: Path) -> None:
    """Small files of large values: each row would be held in memory, and written out, in full."""
    file = tmp_path / "same.parquet"
    parquet.write_table(
        pa.table({"prompt": ["a", *["x" * 200_000] * 20], "n": ["y" * 1_100_000] * 21}), file, compression="zstd"
    )
    assert file.stat().st_size < 100_000
    with pytest.raises(ValueError, match=r"same\.parquet row 2: the prompt has 200000 characters, at most 131072 are"):
        ParquetFilePrompts(str(file))
    with pytest.raises(ValueError, match=r"same\.parquet row 1: the metadata has 1100008 characters, at most 1048576"):
        ParquetFilePrompts(str(file), metadata_columns=["n"])


def test_null_prompts_are_empty_ones(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": null}\n{"prompt": "x"}\n')
    assert items(JsonFilePrompts(str(tmp_path / "a.jsonl"), skip_empty=True)) == [("x", {})]
    with pytest.raises(ValueError, match=r"a\.jsonl line 1: the prompt is null; skip_empty=true leaves such rows out"):
        JsonFilePrompts(str(tmp_path / "a.jsonl"))
    (tmp_path / "b.jsonl").write_text('{"prompt": "x\\u0000y"}\n')
    with pytest.raises(ValueError, match=r"b\.jsonl line 1: the prompt 'x\\x00y' holds a NUL character"):
        JsonFilePrompts(str(tmp_path / "b.jsonl"))


@pytest.mark.parametrize(
    "options",
    [
        {"template": 5}, {"unique": "yes"}, {"skip_empty": None}, {"prompt_column": 3}, {"category_column": ["n"]},
        {"metadata_columns": None}, {"metadata_columns": [1]}, {"columns": "prompt"}, {"delimiter": 5}, {"quoting": 1},
        {"encoding": 8},
    ],
)  # fmt: skip
def test_options_of_another_kind_are_named(tmp_path: Path, options: dict[str, Any]) -> None:
    (tmp_path / "a.csv").write_text("prompt,n\na,1\n")
    [(name, value)] = options.items()
    with pytest.raises(ValueError, match=f"{name} is {re.escape(repr(value))}"):
        open_prompts(str(tmp_path / "a.csv"), **options)


def test_metadata_nested_too_deeply_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "x", "m": ' + "[" * 800 + "]" * 800 + "}\n")
    with pytest.raises(ValueError, match=r"a\.jsonl line 1: column 'm' is nested too deeply"):
        open_prompts(str(tmp_path / "a.jsonl"), metadata_columns="all")


def test_empty_prompts_are_left_out_when_asked(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": " "}\n{"prompt": "x"}\n')
    assert items(JsonFilePrompts(str(tmp_path / "a.jsonl"), skip_empty=True)) == [("x", {})]


def test_any_file_goes_by_the_name(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "x", "n": 1}\n')
    options = parse_options(["metadata_columns=[n]", "unique=true", "prompt_column=prompt"])
    assert options == {"metadata_columns": ["n"], "unique": True, "prompt_column": "prompt"}
    assert items(open_prompts(str(tmp_path / "a.jsonl"), **options)) == [("x", {"n": 1})]
    with pytest.raises(ValueError, match=r"takes no option 'prompt_colum'\. Did you mean 'prompt_column'"):
        open_prompts(str(tmp_path / "a.jsonl"), prompt_colum="x")
    with pytest.raises(ValueError, match=r"the ending '\.doc' tells of no format; known are \.txt"):
        open_prompts("a.doc")
    with pytest.raises(ValueError, match="option 'unique': expected KEY=VALUE"):
        parse_options(["unique"])
