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
        ValueError: damaged data, or a value that Python has no type for, such as a time that is no whole number of
            microseconds; by row and column.
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
        return _as_python(column)
    except (ValueError, OverflowError, KeyError, NotImplementedError) as error:
        row = next((i for i in range(len(column)) if not _has_value(column.slice(i, 1))), 0)
        raise ValueError(
            f"{where} row {start + row + 1}: column '{name}' holds the {column.type} {_shown(column[row])}, expected a "
            f"value that Python can hold: {_first_line(error)}"
        ) from None


def _as_python(column: pa.Array) -> list[Any]:
    """Raises where nanoseconds would be lost, which `to_pylist` drops of some types, and of others without pandas."""
    import pyarrow as pa

    wanted = _in_microseconds(column.type)
    if wanted == column.type:
        return list(column.to_pylist())
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    # A slice shares the values of the rows around it, which a cast would look at.
    return list(column.take(pa.array(range(len(column)), pa.int64())).cast(wanted).to_pylist())


def _in_microseconds(kind: pa.DataType) -> pa.DataType:
    """The type with microseconds, Python's finest, instead of nanoseconds, in whatever it nests."""
    import pyarrow as pa

    types = pa.types
    if types.is_timestamp(kind) and kind.unit == "ns":
        return pa.timestamp("us", kind.tz)
    if types.is_time64(kind) and kind.unit == "ns":
        return pa.time64("us")
    if types.is_duration(kind) and kind.unit == "ns":
        return pa.duration("us")
    if types.is_dictionary(kind):
        value = _in_microseconds(kind.value_type)
        return kind if value == kind.value_type else value
    if types.is_map(kind):
        return pa.map_(_in_microseconds(kind.key_type), _in_microseconds(kind.item_type))
    if types.is_struct(kind):
        return pa.struct([field.with_type(_in_microseconds(field.type)) for field in kind])
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        field = kind.value_field.with_type(_in_microseconds(kind.value_type))
        if types.is_fixed_size_list(kind):
            return pa.list_(field, kind.list_size)
        return pa.large_list(field) if types.is_large_list(kind) else pa.list_(field)
    return kind


def _has_value(column: pa.Array) -> bool:
    try:
        _as_python(column)
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
