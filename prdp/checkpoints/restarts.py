"""A run that starts again by itself: a process was lost with a part of the network that nobody else has."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from prdp.checkpoints.checkpoint import find_latest
from prdp.config import TrainConfig
from prdp.support.microbatches import LEARNER_ADVICE, MemoryShortError
from prdp.support.rank_errors import ShardLostError, ShardMemoryError

_log = logging.getLogger(__name__)


class Restarts:
    """Counts the losses of a run, and says how to start after one.

    Args:
        config: that the run was started with.

    Attributes:
        config: to start with now.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self._newest: Path | None = None
        self._in_a_row = 0

    def lost(self, error: ShardLostError) -> None:
        """Go on from the newest checkpoint; where there is none yet, begin as the run began.

        Where memory ran out, with half the microbatch.

        Raises:
            ShardLostError: `error`, when there were more losses than `cluster.retries` allows without a new checkpoint.
            MemoryShortError: memory ran out, and the microbatch cannot be halved.
        """
        newest, begun = find_latest(self.config.output_dir), "the run begins again"
        if newest is not None:
            begun = f"the run goes on from {newest}"
        if isinstance(error, ShardMemoryError):
            begun = f"{begun}, with {self._halved(error)}"
        else:
            self._count(error, newest)
        _log.warning("%s; %s", error, begun)
        if newest is not None or self.config.checkpoint.resume == "never":
            checkpoint = dataclasses.replace(self.config.checkpoint, resume="auto")
            self.config = dataclasses.replace(self.config, checkpoint=checkpoint)

    def _count(self, error: ShardLostError, newest: Path | None) -> None:
        self._in_a_row = 1 if newest != self._newest else self._in_a_row + 1
        self._newest = newest
        retries = self.config.cluster.retries
        if self._in_a_row > retries:
            error.add_note(f"lost {self._in_a_row} times without a checkpoint in between (cluster.retries={retries})")
            raise error

    def _halved(self, error: ShardMemoryError) -> str:
        """Halve the microbatch; the new setting in words."""
        learner = self.config.learner
        if learner.microbatch == 1:
            raise MemoryShortError(f"{error}; {LEARNER_ADVICE}") from error
        size = learner.microbatch // 2
        self.config = dataclasses.replace(self.config, learner=dataclasses.replace(learner, microbatch=size))
        return f"learner.microbatch={size}"
