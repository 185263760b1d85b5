"""Names in the order in which a person counts: run 2 before run 10."""

from __future__ import annotations

import re
from pathlib import Path


def natural_order(path: Path) -> list[tuple[int, str]]:
    """A key to sort by: numbers within the last part of a path count as numbers."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]
