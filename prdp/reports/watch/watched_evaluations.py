"""The evaluations of a run that may go on, each read once."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

from prdp.reports.charts import Series
from prdp.reports.report_data import heldout_curves
from prdp.tracking.alarms import alarms
from prdp.tracking.evaluations import FOLDER, Evaluation, list_evaluations, load_evaluation

_LIST_SECONDS = 5.0
"""How often the folders are listed where nothing tells of a change: a copy may still be on its way into them."""
_FILES = ("summary.json", "scores.jsonl")

_Stamps = tuple[tuple[int, int, int], ...]


class WatchedEvaluations:
    """Reads what is new: the newest evaluation first, then the others from the oldest on.

    One whose folder goes stays, as a folder that is being removed loses its files one by one; see `forget_the_gone`.

    Attributes:
        problems: epoch -> why it could not be read.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._known: dict[int, tuple[_Stamps, Evaluation]] = {}
        self._broken: dict[int, _Stamps] = {}
        self._there: dict[int, _Stamps] = {}
        self._listed_at, self._folder_stamp = 0.0, (0, 0)
        self._curves: tuple[int, dict[str, Series]] | None = None
        self._picture_curves: dict[str, Series] | None = None
        self._alarms: list[str] | None = None
        self._forget = False
        self.problems: dict[int, str] = {}

    @property
    def loaded(self) -> tuple[Evaluation, ...]:
        """Those that were read, by ascending epoch."""
        return tuple(self._known[epoch][1] for epoch in sorted(self._known))

    @property
    def waiting(self) -> int:
        """How many there are to be read yet."""
        return len(self._to_read())

    def forget_the_gone(self) -> None:
        """At the next look leave out the evaluations that are not there any more: the run has begun anew."""
        self._forget = True

    def curves(self) -> tuple[int, dict[str, Series]]:
        """As `heldout_curves`, computed once for the same evaluations."""
        if self._curves is None:
            self._curves = heldout_curves(self.loaded)
        return self._curves

    def stamp(self, epoch: int) -> str:
        """Changes when an evaluation is written anew."""
        known = self._known.get(epoch)
        return f"{hash(known[0]) & 0xFFFFFFFF:08x}" if known else ""

    def alarms(self) -> list[str]:
        """As `prdp.tracking.alarms` has them, in sentences; computed once for the same evaluations."""
        if self._alarms is None:
            self._alarms = [f"{alarm.text[0].upper()}{alarm.text[1:]}" for alarm in alarms(self.loaded)]
        return self._alarms

    def picture_curves(self) -> dict[str, Series]:
        """Statistics of the pictures over the epochs, likewise."""
        if self._picture_curves is None:
            self._picture_curves = heldout_curves(self.loaded, lambda item: item.pictures)[1]
        return self._picture_curves

    def poll(self, now: float, seconds: float) -> bool:
        """Read what is new for so many seconds, one evaluation at least; whether anything has changed.

        Raises:
            OSError: the folder cannot be listed.
        """
        self._list(now)
        changed = False
        for epoch in [epoch for epoch, (stamps, _) in self._known.items() if self._there.get(epoch) != stamps]:
            del self._known[epoch]
            changed = True
        for gone in [epoch for epoch in self._broken if self._broken[epoch] != self._there.get(epoch)]:
            del self._broken[gone], self.problems[gone]
        end = time.monotonic() + seconds
        for epoch in self._to_read():
            changed = self._read(epoch) or changed
            if time.monotonic() > end:
                break
        if changed:
            self._curves = self._picture_curves = self._alarms = None
        return changed

    def _to_read(self) -> list[int]:
        newest = max(self._there, default=0)
        missing = (epoch for epoch in self._there if epoch not in self._known and epoch not in self._broken)
        return sorted(missing, key=lambda epoch: (epoch != newest, epoch))

    def _list(self, now: float) -> None:
        folder = self._run_dir / FOLDER
        try:
            found = folder.stat()
            stamp = (found.st_ino, found.st_mtime_ns)
        except FileNotFoundError:
            stamp = (0, 0)
        if stamp == self._folder_stamp and 0 <= now - self._listed_at < _LIST_SECONDS and not self._forget:
            return
        self._folder_stamp, self._listed_at = stamp, now
        there = {epoch: self._stamps(epoch) for epoch in list_evaluations(self._run_dir)}
        whole = {epoch: stamps for epoch, stamps in there.items() if stamps is not None}
        self._there = whole if self._forget else {**self._there, **whole}
        self._forget = False

    def _stamps(self, epoch: int) -> _Stamps | None:
        stamps = []
        for name in _FILES:
            try:
                found = (self._run_dir / FOLDER / f"epoch_{epoch:05d}" / name).stat()
            except (FileNotFoundError, NotADirectoryError):
                return None
            stamps.append((found.st_ino, found.st_size, found.st_mtime_ns))
        return tuple(stamps)

    def _read(self, epoch: int) -> bool:
        folder = self._run_dir / FOLDER / f"epoch_{epoch:05d}"
        try:
            for name in _FILES:
                path = folder / name
                if not path.resolve().is_relative_to(self._run_dir.resolve()):
                    raise ValueError(f"{path} leads out of the run's folder and is not read")
                if not path.is_file():
                    raise ValueError(f"{path} is no plain file")
            item = load_evaluation(self._run_dir, epoch)
        except (OSError, ValueError) as error:
            self._broken[epoch], self.problems[epoch] = self._there[epoch], str(error)
            return False
        # The prompts are the same in all of them, and are kept once.
        prompts, categories = (tuple(map(sys.intern, texts)) for texts in (item.prompts, item.categories))
        self._known[epoch] = self._there[epoch], replace(item, prompts=prompts, categories=categories)
        return True
