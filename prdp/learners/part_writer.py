"""A state that several processes hold: each writes its rows in a thread of its own, and the first one gathers none."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from prdp.learners.engine import Arrays
from prdp.support.storage import StorageError, write_atomically
from prdp.support.tensor_parts import Fingerprint, part_file, save_part

_NOTE = ".written"
"""Ends the name of the note beside a part that is on the disk: its fingerprint."""
_LOOK_SECONDS = 0.1
_WAIT_SECONDS = 1.0

Calls = Mapping[int, tuple[str, tuple[Any, ...]]]


class PartWriter:
    """Writes the rows that a process holds, while it makes passes."""

    def __init__(self) -> None:
        self._rows: Arrays | None = None
        self._thread: threading.Thread | None = None
        self._error: str | None = None

    def stage(self, rows: Arrays) -> None:
        """Have these rows written when `begin` is called; what is being written is waited for."""
        if self._thread is not None:
            self._thread.join()
        self._rows = rows

    def staged(self) -> Arrays:
        """The rows that are not written yet; they are let go of here."""
        assert self._rows is not None, "stage comes first"
        rows, self._rows = self._rows, None
        return rows

    def begin(
        self, folder: str, part: int, parts: int, lengths: Mapping[str, int], others: Mapping[str, np.ndarray]
    ) -> bool:
        """Begin to write; see `save_part`. False where the folder is not seen from here."""
        if not Path(folder).is_dir():
            return False
        rows, self._error = self.staged(), None

        def write() -> None:
            try:
                write_part(Path(folder), part, parts, rows, lengths, others)
            except Exception as error:  # noqa: BLE001 - told to whoever waits for it
                self._error = f"{type(error).__name__}: {error}" if not isinstance(error, StorageError) else str(error)

        self._thread = threading.Thread(target=write, name=f"prdp checkpoint part {part}", daemon=True)
        self._thread.start()
        return True

    def written(self, seconds: float) -> str | None:
        """What was wrong with writing, '' for nothing; None while it goes on after so many seconds."""
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                return None
        self._thread = None
        return self._error or ""


class StagedParts:
    """See `prdp.support.staged.Staged`: a part in each process of the first copy of a network.

    Args:
        ask: calls methods of the ranks; their answers.
        parts: how many processes hold a copy.
        lengths: rows of the whole tensors; see `save_part`.
    """

    def __init__(self, ask: Callable[[Calls], dict[int, Any]], parts: int, lengths: Mapping[str, int]) -> None:
        self._ask, self._parts, self._lengths = ask, parts, lengths
        self._folder: Path | None = None

    def begin(self, folder: Path, others: Mapping[str, np.ndarray]) -> None:
        """As `Staged.begin`. Of processes that do not share the disk, one after the other hands its rows over."""
        self._folder, place = folder, str(folder.absolute())
        begun = self._ask(
            {rank: ("write_part", (place, rank, self._parts, {} if rank else others)) for rank in range(self._parts)}
        )
        for rank, there in begun.items():
            if not there:
                rows = self._ask({rank: ("staged_rows", ())})[rank]
                write_part(folder, rank, self._parts, rows, self._lengths, {} if rank else others)

    def wait(self) -> None:
        waiting = set(range(self._parts))
        while waiting:
            answers = self._ask(dict.fromkeys(waiting, ("part_written", (_WAIT_SECONDS,))))
            for rank, told in answers.items():
                if told:
                    raise StorageError(f"learner rank {rank}: {told}")
            waiting = {rank for rank, told in answers.items() if told is None}

    def files(self, ended: threading.Event) -> dict[str, Fingerprint]:
        assert self._folder is not None, "begin comes first"
        names = [part_file(part, self._parts) for part in range(self._parts)]
        notes = {name: self._folder / f"{name}{_NOTE}" for name in names}
        last = False
        while not all(note.exists() for note in notes.values()):
            if last:
                missing = next(name for name, note in notes.items() if not note.exists())
                raise StorageError(f"{self._folder / missing} was not written: its process failed or was lost")
            last = ended.wait(_LOOK_SECONDS)
        found = {name: json.loads(note.read_bytes()) for name, note in notes.items()}
        for note in notes.values():
            note.unlink()
        return found


def write_part(
    folder: Path,
    part: int,
    parts: int,
    rows: Mapping[str, np.ndarray],
    lengths: Mapping[str, int],
    others: Mapping[str, np.ndarray],
) -> None:
    """As `save_part`, and the note that it is on the disk."""
    fingerprint = save_part(folder, part, parts, rows, lengths, others)
    write_atomically(folder / f"{part_file(part, parts)}{_NOTE}", json.dumps(fingerprint).encode())
