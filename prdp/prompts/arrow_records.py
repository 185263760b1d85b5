"""Records of Arrow batches one by one, with messages that name row, column and value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa


def arrow_records(where: str, batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[dict[str, Any], str]]:
    """(record by column name, its place) of each row.

    Args:
        where: file or dataset, for messages.

    Raises:
        ValueError: damaged data, or a value that Python has no type for, such as a time in nanoseconds; by row and
            column.
    """
    import pyarrow as pa

    start = 0
    try:
        for batch in batches:
            # Arrow trusts the offsets in a file, and damaged ones end the process.
            batch.validate(full=True)
            columns = [
                _values(column, name, where, start)
                for name, column in zip(batch.schema.names, batch.columns, strict=True)
            ]
            for number, values in enumerate(zip(*columns, strict=True), start=start + 1):
                yield dict(zip(batch.schema.names, values, strict=True)), f"{where} row {number}"
            start += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{where} is damaged after row {start}: {_first_line(error)}") from None


def _values(column: pa.Array, name: str, where: str, start: int) -> list[Any]:
    """The values of a column as Python's own."""
    try:
        return list(column.to_pylist())
    except (ValueError, OverflowError, KeyError, NotImplementedError) as error:
        row = next((i for i in range(len(column)) if not _has_value(column[i])), 0)
        raise ValueError(
            f"{where} row {start + row + 1}: column '{name}' holds the {column.type} {_shown(column[row])}, expected a "
            f"value that Python can hold: {_first_line(error)}"
        ) from None


def _has_value(scalar: pa.Scalar) -> bool:
    try:
        scalar.as_py()
    except (ValueError, OverflowError, KeyError, NotImplementedError):
        return False
    return True


def _shown(scalar: pa.Scalar) -> str:
    import pyarrow as pa

    try:
        return f"{scalar.cast(pa.string()).as_py()!r:.80}"
    except (ValueError, NotImplementedError):
        return "value that cannot be shown"


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
