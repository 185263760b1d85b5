"""Saving a checkpoint: what is to be kept is on the host, and goes to the disk while learning goes on.

It is written under another name, and gets its own, which makes it the newest, when all of it is on the disk.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from prdp.checkpoints.checkpoint import (
    FOLDER,
    STATE_FILE,
    best_checkpoint,
    format_version,
    jsonable,
    numbered,
    sealed,
)
from prdp.support.staged import Staged, StagedWhole
from prdp.support.storage import atomic_directory, remove_leftovers, write_atomically
from prdp.support.tensor_parts import fingerprint_file

_log = logging.getLogger(__name__)
_Tensors = Mapping[str, np.ndarray]


def save_checkpoint(
    run_dir: Path | str,
    epoch: int,
    tensors: _Tensors,
    state: Mapping[str, Any],
    keep: int,
    attachments: Mapping[str, bytes] | None = None,
    best: str | None = None,
) -> Path:
    """Write the checkpoint to continue at `epoch`, then remove the oldest beyond `keep`; the folder written.

    Args:
        tensors: name -> array, any numeric dtype and shape.
        run_dir, epoch, state, keep, attachments, best: see `CheckpointWriter`.

    Raises:
        StorageError, TypeError: see `CheckpointWriter`.
    """
    return CheckpointWriter(run_dir, epoch, StagedWhole(tensors), {}, state, keep, attachments, best).result()


class CheckpointWriter:
    """Writes the checkpoint to continue at `epoch`, then removes the oldest beyond `keep`, in a thread of its own.

    Args:
        run_dir: the run's folder; it has this process as its only writer.
        epoch: number of epochs done.
        staged: the tensors of the learner.
        tensors: further ones: name -> array, any numeric dtype and shape.
        state: JSON-able: mappings with text keys, lists, text, numbers (numpy scalars too), booleans, None.
        keep: how many checkpoints stay, the new one included; at least 1.
        attachments: further files by name, verified with the checkpoint from then on.
        best: metric of held-out prompts by which the best checkpoint stays as well; None keeps no such one.
        check: called before the checkpoint gets its name; what it raises keeps it from that.
        then: called with the folder once it is there, before the oldest are removed.

    Attributes:
        path: its folder; None as long as it is not there.

    Raises:
        StorageError: nothing can be written.
        ShardLostError: a process that holds a part of `staged` is lost.
        TypeError: a value of `state` that JSON cannot hold, by key.
    """

    def __init__(
        self,
        run_dir: Path | str,
        epoch: int,
        staged: Staged,
        tensors: _Tensors,
        state: Mapping[str, Any],
        keep: int,
        attachments: Mapping[str, bytes] | None = None,
        best: str | None = None,
        check: Callable[[], object] | None = None,
        then: Callable[[Path], object] | None = None,
    ) -> None:
        if keep < 1:
            raise ValueError(f"checkpoint.keep must be at least 1, got {keep}")
        self._run_dir, self._staged, self._keep, self._best = Path(run_dir), staged, keep, best
        self._check, self._then = check, then
        self._attachments = attachments or {}
        self._folder = self._run_dir / FOLDER
        self._document = {"epoch": epoch, "state": jsonable(state, "state")}
        self._target = self._folder / f"epoch_{epoch:05d}"
        self.path: Path | None = None
        self._error: BaseException | None = None
        self._ended = threading.Event()
        remove_leftovers(self._folder)
        self._document["sequence"] = 1 + max((number for number, _ in numbered(self._folder)), default=0)
        with contextlib.ExitStack() as undone:
            temporary = undone.enter_context(atomic_directory(self._target))
            staged.begin(temporary, tensors)
            closing = undone.pop_all()
        self._thread = threading.Thread(
            target=self._write, args=(temporary, closing), name=f"prdp checkpoint {self._target.name}", daemon=True
        )
        self._thread.start()

    def result(self) -> Path:
        """Wait until the checkpoint is there; its folder. Called by the thread that made this.

        Raises:
            StorageError: a full disk, for instance; the older checkpoints stay as they were.
            ShardLostError: a process is lost that had a part to write; the checkpoint may be there all the same.
            Exception: what `check` or `then` raised.
        """
        try:
            self._staged.wait()
        finally:
            self.give_up()
        if self._error is not None:
            raise self._error
        assert self.path is not None
        return self.path

    def is_done(self) -> bool:
        """Whether nothing is written any more."""
        return not self._thread.is_alive()

    def give_up(self) -> None:
        """Wait for this process alone: what others have not written by now is missing."""
        self._ended.set()
        self._thread.join()

    def _write(self, temporary: Path, closing: contextlib.ExitStack) -> None:
        try:
            with closing:
                files = self._staged.files(self._ended)
                for name, content in self._attachments.items():
                    (temporary / name).write_bytes(content)
                    files[name] = fingerprint_file(temporary / name)
                document = {
                    "format": "prdp checkpoint",
                    "format_version": format_version(files),
                    "epoch": self._document["epoch"],
                    "sequence": self._document["sequence"],
                    "files": files,
                    "state": self._document["state"],
                }
                write_atomically(temporary / STATE_FILE, sealed(document))
                if self._check is not None:
                    self._check()
            self.path = self._target
            if self._then is not None:
                self._then(self.path)
            self._prune(None if self._best is None else best_checkpoint(self._run_dir, self._best))
        except BaseException as error:  # noqa: BLE001 - raised where the checkpoint is waited for
            self._error = error

    def _prune(self, best: Path | None) -> None:
        """Remove all but the last ones and the best; a checkpoint that cannot be removed costs disk, not the run."""
        for _, path in sorted(numbered(self._folder))[: -self._keep]:
            if path == best:
                continue
            try:
                shutil.rmtree(path)
            except OSError as error:
                _log.warning("could not remove the old checkpoint %s: %s", path, error)
