"""The runs that a page shows, and the places where further ones may begin."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

from prdp.reports.watch.watched_run import PARTS, Clean, WatchedRun
from prdp.support.natural_order import natural_order

_LIST_SECONDS = 5.0
"""How often folders of sweeps are looked through."""


class WatchedRuns:
    """Runs in a fixed order, to which only new ones are added; a run is known by its place.

    Args:
        places: run folders, or folders whose folders are runs, as those of a sweep. One that is empty yet is taken for
            a run that has not begun, until runs appear within it.
        clean: takes the secrets out of a configuration.

    Attributes:
        lock: to be held by who reads while another may poll.
        turn: counts the looks.
    """

    def __init__(self, places: Sequence[Path], clean: Clean) -> None:
        self._places, self._clean = list(places), clean
        self._found: dict[Path, WatchedRun] = {}
        self._listed_at: float | None = None
        self.lock = threading.RLock()
        self.turn = 0

    @property
    def runs(self) -> list[WatchedRun]:
        """In the order of the places, and within one of their numbers; those that came later are last."""
        return list(self._found.values())

    def poll(self, now: float, seconds: float = 1.0) -> None:
        """Look at every run.

        Args:
            now: seconds since 1970.
            seconds: how long evaluations may be read, in all; one of each run is read at least.
        """
        end = time.monotonic() + seconds
        with self.lock:
            if self._listed_at is None or not 0 <= now - self._listed_at < _LIST_SECONDS:
                self._listed_at = now
                self._list()
            runs = self.runs
        for run in runs:
            with self.lock:
                run.poll(now, end - time.monotonic())
                self.turn += 1

    def _list(self) -> None:
        for place in self._places:
            folders = runs_in(place)
            waiting = self._found.get(place)
            if waiting is not None and not waiting.version and folders != [place]:
                del self._found[place]
            for folder in folders:
                if folder not in self._found:
                    self._found[folder] = WatchedRun(folder, self._clean)

    def names(self) -> list[str]:
        """A name for each run: as few of the last parts of its path as tell it from the others."""
        paths = [run.folder.absolute().parts for run in self.runs]
        return [_name(path, paths) for path in paths]


def runs_in(place: Path) -> list[Path]:
    """The run folders at a place: itself, or those within it; itself where neither is one."""
    if _is_run(place):
        return [place]
    try:
        inside = sorted((folder for folder in place.iterdir() if folder.is_dir()), key=natural_order)
    except OSError:
        inside = []
    return [folder for folder in inside if _is_run(folder)] or [place]


def _is_run(folder: Path) -> bool:
    return any((folder / part).exists() for part in PARTS)


def _name(path: tuple[str, ...], paths: Sequence[tuple[str, ...]]) -> str:
    for count in range(1, len(path)):
        if sum(other[-count:] == path[-count:] for other in paths) <= 1:
            return "/".join(path[-count:])
    return "/".join(path)
