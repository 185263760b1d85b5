"""Prompts from a path alone: the reader follows from the name, its options from the reader."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from prdp.prompts.csv_file import CsvFilePrompts
from prdp.prompts.hf_dataset import HfDatasetPrompts
from prdp.prompts.json_file import JsonFilePrompts
from prdp.prompts.options import check_text
from prdp.prompts.parquet_file import ParquetFilePrompts
from prdp.prompts.table import PromptTable
from prdp.prompts.text_file import TextFilePrompts
from prdp.support.json_lines import load_json
from prdp.support.suggest import did_you_mean

Reader = Callable[..., PromptTable]

READERS: dict[str, Reader] = {
    ".txt": TextFilePrompts,
    ".csv": CsvFilePrompts,
    ".tsv": CsvFilePrompts,
    ".json": JsonFilePrompts,
    ".jsonl": JsonFilePrompts,
    ".parquet": ParquetFilePrompts,
}


def open_prompts(path: str, **options: Any) -> PromptTable:
    """The source of a file, a pattern, or a folder that holds a Hugging Face dataset, by the name's ending.

    Args:
        path: ends on one of `READERS`, all but .parquet also with .gz after it; or a folder.
        options: of the reader: `TextFilePrompts`, `CsvFilePrompts`, `JsonFilePrompts`, `ParquetFilePrompts`,
            `HfDatasetPrompts`.

    Raises:
        ValueError: an unknown ending, an option that the reader does not take, and the reader's own errors.
    """
    check_text("path", path, optional=False)
    reader = reader_of(path)
    known = _options_of(reader)
    for option in options:
        if option not in known:
            hint = did_you_mean(option, known) or f"; it takes {', '.join(known)}"
            raise ValueError(f"the reader of {path} takes no option '{option}'{hint}")
    return reader(path, **options)


def reader_of(path: str) -> Reader:
    """The class that reads a path.

    Raises:
        ValueError: an unknown ending.
    """
    if Path(path).expanduser().is_dir():
        return HfDatasetPrompts
    ending = Path(path.removesuffix(".gz")).suffix
    if ending not in READERS:
        raise ValueError(
            f"prompts file {path}: the ending '{ending}' tells of no format; known are {', '.join(READERS)}, also with "
            ".gz, and folders"
        )
    return READERS[ending]


def has_columns(path: str) -> bool:
    """Whether a file has columns that may travel along as metadata; False for a folder, and for what is unknown."""
    known = READERS.get(Path(path.removesuffix(".gz")).suffix)
    return known is not None and not Path(path).expanduser().is_dir() and "metadata_columns" in _options_of(known)


def _options_of(reader: Reader) -> list[str]:
    return [name for name in inspect.signature(reader).parameters if name != "path"]


def parse_options(words: Iterable[str]) -> dict[str, Any]:
    """Options written as KEY=VALUE; a value is JSON, a list like [a,b], true, false, null, or text.

    Raises:
        ValueError: a word without '='.
    """
    options = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise ValueError(f"option {word!r}: expected KEY=VALUE")
        options[key] = _value(value)
    return options


def _value(text: str) -> Any:
    try:
        return load_json(text)
    except ValueError:
        if text.startswith("[") and text.endswith("]"):
            return [part.strip() for part in text[1:-1].split(",") if part.strip()]
        return text
