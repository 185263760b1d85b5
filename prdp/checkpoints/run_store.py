"""What of a run outlives its process: the folder under a lock, its checkpoints, and their copies under a URL."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from prdp.checkpoints.checkpoint import Checkpoint, load_checkpoint, resolve_resume
from prdp.checkpoints.compatible import (
    check_compatible,
    check_length,
    check_logs,
    check_same_prompts,
    check_same_reward,
    check_state,
)
from prdp.checkpoints.log_archive import LOGS_FILE, evaluation_names, pack_logs
from prdp.checkpoints.mirror import claim, fetch_latest, push, restore_fetched
from prdp.checkpoints.run_folder import check_unused, last_words, sweep
from prdp.checkpoints.run_lock import LockLostError, hold
from prdp.checkpoints.run_log import RunLog
from prdp.checkpoints.run_state import RunState
from prdp.checkpoints.saving import CheckpointWriter
from prdp.config import TrainConfig
from prdp.prompts.stream import PromptSource, fingerprint
from prdp.support.interruption import uninterrupted
from prdp.support.rank_errors import ShardLostError
from prdp.support.staged import Staged

_log = logging.getLogger(__name__)
_Tensors = Mapping[str, np.ndarray]


class SavedLearner(Protocol):
    """What a checkpoint asks of the learner."""

    @property
    def version(self) -> int:
        """Updates done."""
        ...

    def stage(self) -> tuple[Staged, _Tensors, Mapping[str, Any]]:
        """Its tensors, copied to the host; further tensors by name, and what else there is to it."""
        ...


class SavedRollouts(Protocol):
    """What a checkpoint asks of the queue of rollouts."""

    def state(self, epoch: int, begun: bool = False) -> tuple[_Tensors, Mapping[str, Any]]:
        """Tensors by name and what else there is, to go on in `epoch`, some updates of which are done when `begun`."""
        ...


class RunStore:
    """The folder of a run, which nobody else writes into until `close`.

    Args:
        config: of the run.

    Raises:
        LockedError, LockedElsewhereError, StartError: as `prdp.checkpoints.run_lock.hold`.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.folder = Path(config.output_dir)
        self.lock = hold(self.folder)
        self._config, self._mirror = config, config.checkpoint.mirror
        self._facts: dict[str, Any] = {"config": dataclasses.asdict(config)}
        self.changes: list[str] = []
        """What `checkpoint.change` let differ from the checkpoint that `find` found, a line each."""
        self._saved_epoch: int | None = None
        self._saved_version = 0
        self._writing: tuple[CheckpointWriter, int, int] | None = None
        """A checkpoint on its way to the disk, its epoch and its updates."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._writing is not None:  # its learner is gone
            self._writing[0].give_up()
        self.lock.release()

    def check_free(self) -> None:
        """Refuse a folder with work in it where the configuration asks for a new run.

        Raises:
            ConfigError: naming the way to go on.
        """
        if self._config.checkpoint.resume == "never":
            check_unused(self.folder)

    def find(self, train: PromptSource, heldout: PromptSource) -> Checkpoint | None:
        """The checkpoint that the configuration asks for, if it is of such a run; None for a fresh run.

        Args:
            train, heldout: sources of the run, whose content has to be what it was.

        Raises:
            CheckpointError: none that is whole, or one of another run; names what differs.
        """
        self._facts |= {"prompts_fingerprint": fingerprint(train), "heldout_fingerprint": fingerprint(heldout)}
        resume = self._config.checkpoint.resume
        if self._mirror is not None and resume == "auto":
            fetch_latest(self._mirror, self.folder)
        path = resolve_resume(resume, self.folder)
        if path is None:
            return None
        checkpoint = load_checkpoint(path)
        check_state(checkpoint)
        saved = checkpoint.state
        self.changes = check_compatible(saved["config"], self._facts["config"])
        check_length(checkpoint.epoch, self._config.epochs)
        for part, source, key in (("train", train, "prompts_fingerprint"), ("heldout", heldout, "heldout_fingerprint")):
            where = str(getattr(source, "key", f"prompts.{part}"))
            check_same_prompts(saved.get(key) or "", self._facts[key], part, where)
        self._saved_epoch, self._saved_version = checkpoint.epoch, int(saved["learner"]["updates"])
        return checkpoint

    def enter(self, checkpoint: Checkpoint | None, reward_identity: Mapping[str, Any]) -> None:
        """Write into the folder for the first time: nothing may refuse the start any more but the reward.

        Raises:
            CheckpointError: the checkpoint was trained on another reward, or its logs are damaged.
            LockLostError: the folder is another's by now.
        """
        check_same_reward({} if checkpoint is None else checkpoint.state.get("reward") or {}, reward_identity)
        self._facts["reward"] = reward_identity
        self.lock.check()
        if self._mirror is not None:
            claim(self._mirror, self.lock.owner)
        sweep(self.folder)
        if checkpoint is not None:
            restore_fetched(checkpoint.path, self.folder, self._mirror)
            check_logs(self.folder)

    def save(self, state: RunState, learner: SavedLearner, rollouts: SavedRollouts) -> None:
        """Write a checkpoint and copy it to the mirror, while learning goes on where `checkpoint.background` says so.

        An earlier one is waited for. What goes wrong in the background is raised by the next `save` or `settle`.

        Raises:
            StorageError: a full disk, for instance; older checkpoints stay as they were.
            LockLostError: the folder or the mirror is another's by now.
            ShardLostError: a process is lost that has a part to write.
        """
        self.settle()
        self.lock.check()
        begun = state.begun(learner.version, self._config.updates_per_epoch) > 0
        staged, tensors, scalars = learner.stage()
        published, queue = rollouts.state(state.epoch, begun=begun)
        content: dict[str, Any] = {"learner": scalars, **queue, **self._facts, **state.saved()}
        keep, logs = self._config.checkpoint.keep, {}
        if self._mirror is not None:
            content["evaluations"] = evaluation_names(self.folder)
            logs[LOGS_FILE] = pack_logs(self.folder)
        best, all_tensors = self._config.checkpoint.keep_best, {**tensors, **published}
        with uninterrupted():  # nobody else knows of its thread
            writer = CheckpointWriter(
                self.folder, state.epoch, staged, all_tensors, content, keep, logs, best, self.lock.check, self._copied
            )
            self._writing = writer, state.epoch, learner.version
        if not self._config.checkpoint.background:
            self.settle()

    def settle(self) -> None:
        """Wait until the checkpoint that is being written is there.

        Raises:
            StorageError, LockLostError, ShardLostError: see `save`.
        """
        if self._writing is None:
            return
        writer, epoch, version = self._writing
        try:
            writer.result()
        finally:
            if writer.is_done():  # not so when an interruption ended the waiting
                self._writing = None
            if writer.path is not None:
                self._saved_epoch, self._saved_version = epoch, version

    def _copied(self, saved: Path) -> None:
        if self._mirror is not None:
            push(saved, self._mirror, self._config.checkpoint.keep, self.lock.owner)

    @contextlib.contextmanager
    def finished_epochs_kept(self, log: RunLog, learner: SavedLearner, rollouts: SavedRollouts) -> Iterator[None]:
        """Log and save what is finished when something fails, or the run is to end; the error says how to go on."""
        try:
            yield
        except BaseException as error:
            with uninterrupted():
                self._keep(log, learner, rollouts)
                error.add_note(last_words(error, self.folder, self._saved_epoch))
            raise

    def _keep(self, log: RunLog, learner: SavedLearner, rollouts: SavedRollouts) -> None:
        """Nothing that fails here is raised: the error on its way matters more."""
        try:
            if log.state.unlogged:
                with contextlib.suppress(OSError):  # a checkpoint keeps the line
                    log.write()
            try:
                self.settle()
            except OSError as first:
                _log.warning("the last checkpoint is not whole: %s", first)
            if learner.version > self._saved_version:
                self.save(log.state, learner, rollouts)
                self.settle()
        except (OSError, LockLostError, ShardLostError) as second:
            _log.warning("epoch %d could not be saved: %s", log.state.epoch, second)
