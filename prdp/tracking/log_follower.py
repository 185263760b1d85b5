"""The log of a run that may go on, read on from where the last look ended."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from prdp.support.growing_file import GrowingFile
from prdp.support.json_lines import load_json
from prdp.tracking.jsonl import parse_row


class LogFollower:
    """The numbers of a `metrics.jsonl` of which only what is new is read.

    A resume writes the log anew, and a run that starts over begins another: both are read from the start. A damaged
    line is left out, and told of. Of a log that is gone the numbers stay, until there is another.

    Args:
        path: of the log, which need not be there yet.

    Attributes:
        wall_seconds: time at work over all sessions.
        last_epoch: highest epoch with a line, None without any.
        damaged: numbers of the lines that were left out.
        anew: how often the log turned out to be another one, or written anew.
    """

    def __init__(self, path: Path) -> None:
        self._file = GrowingFile(path)
        self.anew = 0
        self._forget()

    def _forget(self) -> None:
        self._columns: dict[str, dict[int, float]] = {}
        self.wall_seconds = 0.0
        self.last_epoch: int | None = None
        self.damaged: list[int] = []

    @property
    def whole(self) -> bool:
        """Whether all was read that was there at the last look; a long log takes several."""
        return self._file.whole

    def poll(self) -> bool:
        """Read what is new; whether anything has changed.

        Raises:
            OSError: the log cannot be read. What was read before is kept.
        """
        before = self._file.line
        anew, lines = self._file.poll()
        if anew:
            self.anew += 1
            self._forget()
            before = 0
        for number, line in enumerate(lines, start=before + 1):
            self._take(number, line)
        return anew or bool(lines)

    def columns(self) -> dict[str, tuple[list[int], list[float]]]:
        """Name -> (epochs, values), by ascending epoch; of several values of an epoch the last one counts."""
        return {name: _sorted(values) for name, values in self._columns.items()}

    def _take(self, number: int, line: bytes) -> None:
        if not line.strip():
            return
        try:
            row = parse_row(load_json(line))
            epoch, wall_seconds = row["epoch"], float(row.get("wall_seconds", 0.0))
            numbers = {
                name: float(value)
                for name, value in row.items()
                if name not in ("epoch", "wall_seconds") and isinstance(value, int | float)
            }
            float(epoch)
        except (ValueError, OverflowError):
            self.damaged.append(number)
            return
        self.last_epoch = epoch if self.last_epoch is None else max(epoch, self.last_epoch)
        if math.isfinite(wall_seconds):
            self.wall_seconds = max(self.wall_seconds, wall_seconds)
        for name, value in numbers.items():
            self._columns.setdefault(name, {})[epoch] = value


def _sorted(values: Mapping[int, float]) -> tuple[list[int], list[float]]:
    epochs = sorted(values)
    return epochs, [values[epoch] for epoch in epochs]
