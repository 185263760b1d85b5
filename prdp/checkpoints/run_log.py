"""The logs of a run that trains: each epoch once, across interruptions and resumes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from prdp.checkpoints.run_lock import RunLock
from prdp.checkpoints.run_state import RunState
from prdp.config import TrainConfig
from prdp.prompts.stream import PromptSource
from prdp.prompts.usage import PromptLog
from prdp.support.interruption import uninterrupted
from prdp.tracking.base import LEAST_SIDE, Trackers, build_trackers
from prdp.tracking.console import Progress
from prdp.tracking.jsonl import choose_run_id
from prdp.types import Rollout

Watcher = Callable[[str, Mapping[str, float], int], None]
"""Gets the run's name, the numbers of an epoch, and how many epochs are done."""


class RunLog:
    """Writes the log of prompts, the metrics and the progress of a run.

    Args:
        config: of the run.
        source: what it trains on.
        state: what is not logged yet stands there, and travels with the checkpoints.
        lock: of the run's folder, asked before anything is written.
        resumed: epochs of the checkpoint that the run goes on from; None for a fresh run.
        reward_identity: noted in the log.
        watcher: is told of every epoch besides.

    Attributes:
        trackers, progress: context managers, to be entered by the loop.

    Raises:
        ValueError: the logs to go on with are damaged.
        OSError: they cannot be written.
    """

    def __init__(
        self,
        config: TrainConfig,
        source: PromptSource,
        state: RunState,
        lock: RunLock,
        *,
        resumed: int | None,
        reward_identity: Mapping[str, Any],
        watcher: Watcher,
    ) -> None:
        self.state, self.lock = state, lock
        self._folder, self._watcher = Path(config.output_dir), watcher
        self._epoch_start = time.monotonic()
        self._prompt_log = PromptLog(self._folder, source, config.seed, config.prompts.shuffle, resumed)
        run_id, facts = choose_run_id(self._folder, resumed), {"reward_identity": reward_identity}
        plain = dataclasses.asdict(config)
        self.trackers: Trackers = build_trackers(config.tracking, self._folder, plain, run_id, resumed, facts)
        logged = state.epoch - ("time/epoch" in state.unlogged)
        self.progress = Progress(
            config.epochs, logged, self._folder, enabled=config.tracking.console, is_ours=lock.is_held
        )

    def begin_epoch(self) -> None:
        """The clock of the epoch starts."""
        self._epoch_start = time.monotonic()

    def count_epoch(self, rollout: Rollout, metrics: dict[str, float]) -> None:
        """The updates of an epoch are done: from here on it may be saved. `metrics` become its line."""
        metrics["time/epoch"] = time.monotonic() - self._epoch_start
        metrics["images_per_second/epoch"] = len(rollout) / metrics["time/epoch"]
        with uninterrupted():
            self.state.epoch += 1
            self.state.drawn, self.state.unlogged = rollout.prompts.indices, metrics

    def show(self, rollout: Rollout, pictures: int) -> None:
        """Tell the services how the rewards of an epoch are spread, with its best and its worst images.

        Args:
            rollout: scored, with its images.
            pictures: how many of each; 0 for none.
        """
        if not self.trackers.active:
            return
        assert rollout.rewards is not None
        self.trackers.histogram("training/rewards", rollout.rewards, self.state.epoch)
        order = np.argsort(-rollout.rewards, kind="stable")
        if not pictures or min(rollout.images.shape[1:3]) < LEAST_SIDE:
            return
        for name, rows in (("training/best", order[:pictures]), ("training/worst", order[::-1][:pictures])):
            texts = [f"{rollout.rewards[row]:.3f}: {rollout.image_prompts[row]}" for row in rows]
            self.trackers.images(name, rollout.images[rows], texts, self.state.epoch)

    def write(self) -> None:
        """Write what is known and not logged yet.

        Raises:
            LockLostError: the folder is another's.
            OSError: a log cannot be written; what is not in it stays unlogged.
        """
        state = self.state
        with uninterrupted():
            self.lock.check()
            metrics = state.unlogged
            if "time/epoch" in metrics and "wall_seconds" not in metrics:
                state.wall_seconds += time.monotonic() - self._epoch_start
                metrics["wall_seconds"] = state.wall_seconds
            if state.drawn is not None:
                self._prompt_log.write(state.epoch, state.drawn)
                state.drawn = None
            self.trackers.log(metrics, state.epoch)
            state.unlogged = {}
            if "time/epoch" in metrics:
                self._watcher(self._folder.name, metrics, state.epoch)
                self.progress.epoch_done(metrics)
