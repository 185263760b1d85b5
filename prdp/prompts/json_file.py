"""Prompts from JSON: one record a line (.jsonl), or one list for the whole file (.json)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from prdp.prompts.cache import Cleaning, cached_table
from prdp.prompts.files import source_files, stem, text_lines, whole_text
from prdp.prompts.options import check_flag
from prdp.prompts.records import Columns
from prdp.prompts.table import PromptTable, Row


class JsonFilePrompts(PromptTable):
    """One prompt a record of JSON files; a record is an object, or a text that is the prompt itself.

    Args:
        path: of a file, plain or .gz; a pattern; or a list of these. .json files hold one list, all others a record
            a line.
        prompt_column: key of the prompt; None takes the only one called prompt, caption or text.
        category_column: key that becomes `category` in the metadata.
        metadata_columns: keys that travel along under their names; 'all' takes every key but the prompt's. A record
            may lack some of them.
        file_as_category: True puts the file's name, without its endings, into the metadata as category.
        template, unique, skip_empty: see `Cleaning`.
        encoding: of the files.

    Raises:
        ValueError: no such file, a line that is not JSON (by number), a key that is not there, no prompt.
    """

    def __init__(
        self,
        path: str | Sequence[str],
        prompt_column: str | None = None,
        category_column: str | None = None,
        metadata_columns: str | Sequence[str] = (),
        file_as_category: bool = False,
        template: str = "{}",
        unique: bool = False,
        skip_empty: bool = False,
        encoding: str = "utf-8",
    ) -> None:
        check_flag("file_as_category", file_as_category)
        files = source_files(path)
        choice = Columns(prompt_column, category_column, metadata_columns)
        key = {"columns": choice.key, "file_as_category": file_as_category, "encoding": encoding}

        def rows() -> Iterator[Row]:
            keys: dict[str, None] = {}
            for file in files:
                for record, place in _records(file, encoding):
                    if isinstance(record, str):
                        row = Row(record, {}, place)
                    elif isinstance(record, dict):
                        row = choice.row(record, place)
                        keys |= dict.fromkeys(record)
                    else:
                        raise ValueError(f"{place}: {_shown(record)}, expected a JSON object or text")
                    yield row._replace(metadata={**row.metadata, "category": stem(file)}) if file_as_category else row
            choice.check_seen(str(files[0]), list(keys))

        super().__init__(cached_table("json", files, key, rows, Cleaning(template, unique, skip_empty)))


def _records(file: Path, encoding: str) -> Iterator[tuple[Any, str]]:
    if ".json" in file.suffixes:
        yield from _records_of_list(file, encoding)
        return
    for number, line in enumerate(text_lines(file, encoding), start=1):
        if not line.strip():
            continue
        try:
            yield json.loads(line.rstrip()), f"{file} line {number}"
        except (ValueError, RecursionError) as error:
            reason = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            start = line.strip()[:40]
            raise ValueError(f"{file} line {number} is not JSON: {reason}; it starts with {start!r}") from None


def _records_of_list(file: Path, encoding: str) -> Iterator[tuple[Any, str]]:
    text = whole_text(file, encoding)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON: {error}; a file with a record a line is called .jsonl") from None
    if not isinstance(content, list):
        raise ValueError(f"{file}: {_shown(content)}, expected a JSON list")
    for number, record in enumerate(content, start=1):
        yield record, f"{file} entry {number}"


def _shown(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "a boolean", int: "a number", float: "a number"}
    return f"the record is {kinds.get(type(value), 'null')}"
