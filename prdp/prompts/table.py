"""Prompts in a memory-mapped Arrow file: a million open at once, and none is a Python string until it is asked for."""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from prdp.support.errors import UserError
from prdp.support.json_lines import load_json

if TYPE_CHECKING:
    import pyarrow

BUILDER_VERSION = 3
"""Part of every cache key: to be raised when the same input would give another table."""

ROWS_PER_BATCH = 8192
LONGEST_PROMPT, LONGEST_METADATA = 2**17, 2**20
"""Characters of a row, of which a batch is held in memory: a tiny Parquet file may say a long text in each row."""
READS_PER_RELEASE = 64
"""A read in random order maps up to four pages with 15 neighbours each, 256 KiB."""
_FACTS = "prdp"


class Row(NamedTuple):
    """One prompt on its way into a table.

    Attributes:
        text: the prompt.
        metadata: JSON-able.
        place: file and line, for messages.
    """

    text: str
    metadata: Mapping[str, Any]
    place: str


class DamagedTableError(UserError, ValueError):
    """A table file that is cut off or was not written by `write_table`."""


class PromptTable:
    """A prompt source on a file that `write_table` wrote; nothing of it is read before it is asked for.

    Attributes:
        path: the file.
        fingerprint: hex digest (64 bits) of prompts and metadata in their order.

    Raises:
        DamagedTableError: the file is cut off, or no table of prompts.
        FileNotFoundError: there is no such file.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        self.path = path
        try:
            with path.open("rb") as file:
                self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            reader = pa.ipc.open_file(pa.py_buffer(self._mapped))
            last = reader.get_batch_with_custom_metadata(reader.num_record_batches - 1)
            facts = load_json(last.custom_metadata[_FACTS])
            self._batches = [reader.get_batch(number) for number in range(reader.num_record_batches - 1)]
            self._rows = int(facts["rows"])
            self.fingerprint = str(facts["fingerprint"])
            held = sum(batch.num_rows for batch in self._batches)
            if held != self._rows:
                raise ValueError(f"it holds {held} rows, expected {self._rows}")
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError, TypeError, KeyError, ValueError) as error:
            raise DamagedTableError(f"{path} is no whole table of prompts: {error}") from None
        self._reads = 0

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: int) -> tuple[str, dict[str, Any]]:
        """Prompt and metadata; a negative index counts from the end.

        Raises:
            IndexError: outside of the table.
            DamagedTableError: the row is damaged.
        """
        if not -self._rows <= index < self._rows:
            raise IndexError(f"index {index} is outside a table of {self._rows} prompts")
        batch, row = divmod(index % self._rows, ROWS_PER_BATCH)
        texts, metadata = self._batches[batch].columns
        try:
            found = texts[row].as_py(), load_json(metadata[row].as_py())
        except (ValueError, IndexError) as error:
            raise DamagedTableError(
                f"{self.path} is damaged in row {index % self._rows + 1}: {error}; remove it, it is built anew"
            ) from None
        self._reads += 1
        if self._reads % READS_PER_RELEASE == 0 and hasattr(mmap, "MADV_DONTNEED"):
            # Pages stay in the system's cache, but no longer count as this process's memory.
            self._mapped.madvise(mmap.MADV_DONTNEED)
        return found

    def texts(self) -> Iterator[str]:
        """The prompts in order."""
        for batch in self._batches:
            yield from batch.column(0).to_pylist()

    def metadata(self) -> Iterator[dict[str, Any]]:
        """The metadata in order."""
        for batch in self._batches:
            yield from map(load_json, batch.column(1).to_pylist())


def write_table(file: BinaryIO, rows: Iterable[Row]) -> int:
    """Write rows into an open file as Arrow batches of (text, metadata as JSON); the number of rows.

    The same rows give the same bytes. The last batch is empty and carries the facts that are known at the end.

    Raises:
        ValueError: metadata that JSON cannot hold, text that UTF-8 cannot, or more of either than is taken; by place.
    """
    import pyarrow as pa

    schema = pa.schema([("prompt", pa.string()), ("metadata", pa.string())])
    digest, count = hashlib.blake2b(digest_size=8), 0
    texts: list[str] = []
    metadata: list[str] = []
    with pa.ipc.new_file(file, schema) as writer:

        def flush() -> None:
            if texts:
                writer.write_batch(_batch(schema, texts, metadata))
                texts.clear()
                metadata.clear()

        for row in rows:
            packed = _packed(row)
            for what, held, most in (("prompt", row.text, LONGEST_PROMPT), ("metadata", packed, LONGEST_METADATA)):
                if len(held) > most:
                    raise ValueError(f"{row.place}: the {what} has {len(held)} characters, at most {most} are taken")
            try:
                digest.update(f"{len(row.text)}|{row.text}|{len(packed)}|{packed}|".encode())
            except UnicodeEncodeError as error:
                raise ValueError(f"{row.place}: holds half of a surrogate pair, which is no text: {error}") from None
            texts.append(row.text)
            metadata.append(packed)
            count += 1
            if len(texts) == ROWS_PER_BATCH:
                flush()
        flush()
        facts = json.dumps({"rows": count, "fingerprint": digest.hexdigest(), "builder": BUILDER_VERSION})
        writer.write_batch(_batch(schema, [], []), custom_metadata={_FACTS: facts})
    return count


def _batch(schema: pyarrow.Schema, texts: list[str], metadata: list[str]) -> pyarrow.RecordBatch:
    import pyarrow as pa

    return pa.record_batch([pa.array(texts, pa.string()), pa.array(metadata, pa.string())], schema=schema)


def _packed(row: Row) -> str:
    try:
        return json.dumps(row.metadata, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{row.place}: its metadata does not fit into JSON: {error}") from None
