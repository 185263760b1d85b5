"""Writing prompt sets: .jsonl with their metadata, .txt without."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from prdp.support.json_lines import json_line
from prdp.support.storage import write_atomically

ENDINGS = (".jsonl", ".txt")


def write_prompts(path: str | Path, prompts: Iterable[tuple[str, Mapping[str, Any]]]) -> int:
    """Write prompts with their metadata beside the key `prompt`, or one prompt a line; returns their number.

    Raises:
        ValueError: another ending than .jsonl or .txt, or metadata that itself has a key `prompt`.
        StorageError: the file cannot be written; what it held before stays.
    """
    check_ending(path)
    as_text = Path(path).suffix == ".txt"
    count = 0

    def write(file: BinaryIO) -> None:
        nonlocal count
        for count, (text, metadata) in enumerate(prompts, start=1):
            if "prompt" in metadata:
                raise ValueError(f"the metadata of prompt {count} has a key 'prompt'; leave that column out")
            record = {"prompt": text, **metadata}
            line = re.sub(r"[\r\n]+", " ", text) + "\n" if as_text else json_line(record)
            file.write(line.encode())

    write_atomically(path, write)
    return count


def check_ending(path: str | Path) -> None:
    """Raises ValueError for a file that `write_prompts` would not write."""
    if Path(path).suffix not in ENDINGS:
        raise ValueError(f"output {path}: must end on {' or '.join(ENDINGS)}")
