"""Prompts from Parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prdp.prompts.arrow_records import arrow_records
from prdp.prompts.cache import Cleaning, cached_table
from prdp.prompts.files import source_files
from prdp.prompts.records import Columns
from prdp.prompts.table import PromptTable, Row

_ROWS = 64
"""Read at a time: a text that many rows share stands in the file once, and in memory once for each of these."""


class ParquetFilePrompts(PromptTable):
    """One prompt a row of Parquet files; only the columns asked for are read.

    Args:
        path: of a file; a pattern, such as 'train-*.parquet'; or a list of these.
        prompt_column: None takes the only column called prompt, caption or text.
        category_column: becomes `category` in the metadata.
        metadata_columns: travel along under their names; 'all' takes every column but the prompt's.
        template, unique, skip_empty: see `Cleaning`.

    Raises:
        ValueError: no such file or column, no Parquet file, no prompt, a column that JSON cannot hold.
    """

    def __init__(
        self,
        path: str | Sequence[str],
        prompt_column: str | None = None,
        category_column: str | None = None,
        metadata_columns: str | Sequence[str] = (),
        template: str = "{}",
        unique: bool = False,
        skip_empty: bool = False,
    ) -> None:
        import pyarrow as pa
        import pyarrow.parquet as parquet

        files = source_files(path)
        choice = Columns(prompt_column, category_column, metadata_columns)

        def rows() -> Iterator[Row]:
            for file in files:
                try:
                    opened = parquet.ParquetFile(file)
                    names = opened.schema_arrow.names
                except (pa.ArrowException, OSError) as error:
                    reason = getattr(error, "strerror", None) or error
                    raise ValueError(f"{file} is no whole Parquet file: {reason}") from None
                with opened:
                    choice.check(str(file), names)
                    batches = opened.iter_batches(batch_size=_ROWS, columns=choice.wanted(names))
                    for record, place in arrow_records(str(file), batches):
                        yield choice.row(record, place)

        key = {"columns": choice.key}
        super().__init__(cached_table("parquet", files, key, rows, Cleaning(template, unique, skip_empty)))
