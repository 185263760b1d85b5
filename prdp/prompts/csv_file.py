"""Prompts from CSV and TSV files."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from prdp.prompts.cache import Cleaning, cached_table
from prdp.prompts.files import source_files, text_lines
from prdp.prompts.options import check_flag, check_text, check_texts
from prdp.prompts.records import Columns
from prdp.prompts.table import PromptTable, Row

_log = logging.getLogger(__name__)
_DELIMITERS = ("\t", ";", ",", "|")
_FIELD_LIMIT = 2**31 - 1
"""Characters of a field, a column's that is not asked for included; the csv module's own limit is 131,072."""


class CsvFilePrompts(PromptTable):
    """One prompt a record of comma- or tab-separated files.

    Args:
        path: of a file, plain or .gz; a pattern; or a list of these.
        prompt_column: None takes the only column called prompt, caption or text.
        category_column: becomes `category` in the metadata.
        metadata_columns: travel along under their names, as text; 'all' takes every column but the prompt's.
        columns: names of the columns of files without a header line; None takes them from the first line.
        delimiter: None is a tab for .tsv and .tsv.gz, else a comma.
        quoting: whether fields may stand in double quotes; None is no for tabs, yes else.
        template, unique, skip_empty: see `Cleaning`.
        encoding: of the files.

    Raises:
        ValueError: no such file or column, a record with another number of fields, not of the encoding, no prompt.
    """

    def __init__(
        self,
        path: str | Sequence[str],
        prompt_column: str | None = None,
        category_column: str | None = None,
        metadata_columns: str | Sequence[str] = (),
        columns: Sequence[str] | None = None,
        delimiter: str | None = None,
        quoting: bool | None = None,
        template: str = "{}",
        unique: bool = False,
        skip_empty: bool = False,
        encoding: str = "utf-8",
    ) -> None:
        check_flag("quoting", quoting, optional=True)
        check_text("delimiter", delimiter)
        if columns is not None:
            check_texts("columns", columns)
        files = source_files(path)
        choice = Columns(prompt_column, category_column, metadata_columns)
        key = {
            "columns": choice.key,
            "header": columns and list(columns),
            "delimiter": delimiter,
            "quoting": quoting,
            "encoding": encoding,
        }

        def rows() -> Iterator[Row]:
            for file in files:
                for record, place in csv_records(file, columns, delimiter, quoting, encoding, choice):
                    yield choice.row(record, place)

        super().__init__(cached_table("csv", files, key, rows, Cleaning(template, unique, skip_empty)))


def csv_records(
    file: Path,
    columns: Sequence[str] | None,
    delimiter: str | None,
    quoting: bool | None,
    encoding: str,
    choice: Columns,
) -> Iterator[tuple[dict[str, Any], str]]:
    """Records by column name with their places; arguments as for `CsvFilePrompts`. Checks `choice` against the header.

    Raises:
        ValueError: as `CsvFilePrompts`.
    """
    if delimiter is None:
        delimiter = "\t" if ".tsv" in file.suffixes else ","
    if len(delimiter) != 1:
        raise ValueError(f"prompts delimiter is {delimiter!r}, expected one character")
    quoted = delimiter != "\t" if quoting is None else quoting
    csv.field_size_limit(_FIELD_LIMIT)
    lines = text_lines(file, encoding)
    if quoted:
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
    else:
        reader = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE, strict=True)
    names = list(columns) if columns is not None else None
    wanted: list[str] = []
    if names is not None:
        choice.check(str(file), names)
        wanted = choice.wanted(names)
    records = enclosed = doubled = 0
    while True:
        place = f"{file} line {reader.line_num + 1}"
        try:
            record = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            raise ValueError(f"{place}: {error}; quoting=false takes double quotes as letters") from None
        if names is None:
            names = [name.strip() for name in record]
            try:
                choice.check(str(file), names)
            except ValueError as error:
                hint = _header_hint(names, delimiter, quoted)
                raise ValueError(f"{error}{hint and f'; {hint}'}".replace("?; ", "? ")) from None
            wanted = choice.wanted(names)
        elif record and len(record) != len(names):
            hint = "" if quoted or '"' not in "".join(record) else "; quoting=true reads fields in double quotes"
            raise ValueError(f"{place}: {len(record)} fields, expected {len(names)} ({', '.join(names)}){hint}")
        elif record:
            fields = dict(zip(names, record, strict=True))
            records += 1
            if not quoted:
                inner = [text[1:-1] for name in wanted if _in_quotes(text := fields[name].strip())]
                enclosed += bool(inner)
                doubled += any('""' in text for text in inner)
            yield fields, place
    if doubled or records == enclosed > 1:
        _log.warning(
            "prompts file %s: in %d of %d records a field stands in double quotes, which stay a part of it; "
            "quoting=true reads files as Python's csv module and spreadsheets write them",
            file,
            enclosed,
            records,
        )


def _in_quotes(text: str) -> bool:
    return len(text) > 1 and text[0] == text[-1] == '"'


def _header_hint(names: Sequence[str], delimiter: str, quoted: bool) -> str:
    """What a header without the columns asked for looks like, when it is that of another dialect."""
    if not quoted and any(map(_in_quotes, names)):
        return "quoting=true reads fields in double quotes"
    others = [other for other in _DELIMITERS if other != delimiter and len(names) == 1 and other in names[0]]
    return f"delimiter={json.dumps(others[0])} divides this line" if others else ""
