"""A learner's state on its way into a checkpoint: copied to the host, then written while learning goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from threading import Event
from typing import Protocol

import numpy as np

from prdp.support.storage import save_tensors
from prdp.support.tensor_parts import WHOLE_FILE, Fingerprint, fingerprint_file


class Staged(Protocol):
    """What was copied, in whichever processes it lies."""

    def begin(self, folder: Path, others: Mapping[str, np.ndarray]) -> None:
        """Have it written into a folder, with further whole tensors; called once, by the thread that learns.

        Raises:
            ShardLostError: a process that had a part of it is lost.
        """
        ...

    def wait(self) -> None:
        """Wait until other processes have written what they hold; called by the thread that learns.

        Raises:
            ShardLostError: one is lost.
            StorageError: one could not write.
        """
        ...

    def files(self, ended: Event) -> dict[str, Fingerprint]:
        """Write what this process holds, and wait for the others: all files, by name; called by a thread of its own.

        Args:
            ended: set when other processes write no more.

        Raises:
            StorageError: not all of it is on the disk.
        """
        ...


class StagedWhole:
    """See `Staged`: all of it in this process, and one file.

    Args:
        tensors: by name; not changed from now on.
    """

    def __init__(self, tensors: Mapping[str, np.ndarray]) -> None:
        self._tensors = tensors
        self._folder: Path | None = None

    def begin(self, folder: Path, others: Mapping[str, np.ndarray]) -> None:
        self._folder, self._tensors = folder, {**self._tensors, **others}

    def wait(self) -> None:
        pass

    def files(self, ended: Event) -> dict[str, Fingerprint]:
        assert self._folder is not None, "begin comes first"
        path = self._folder / WHOLE_FILE
        save_tensors(path, self._tensors)
        self._tensors = {}
        return {path.name: fingerprint_file(path)}
