"""CSV for spreadsheets: texts that a spreadsheet would run as a formula get an apostrophe before them.

A cell is taken for a formula when it starts with one of = + - @, a tab or a line end, or with the wide forms of these
letters, also where a prompt is only meant as text (OWASP, CSV Injection). `from_cell` takes the apostrophe off again.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_ESCAPED = re.compile("'+[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")


def to_cell(value: Any) -> Any:
    """A text with an apostrophe before it where it needs one; numbers and other values stay what they are.

    A text that already has apostrophes before such a letter gets one more, so that `from_cell` is exact.
    """
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def from_cell(text: str) -> str:
    """Inverse of `to_cell`."""
    return text[1:] if _ESCAPED.match(text) else text


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of the same keys, at least one, as CSV with a header line; every text in quotes, every number without."""
    buffer = io.StringIO()
    # With quotes around texts alone where needed, the module leaves a carriage return bare before this line end.
    writer = csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow([to_cell(name) for name in rows[0]])
    writer.writerows([to_cell(row[name]) for name in rows[0]] for row in rows)
    return buffer.getvalue()
