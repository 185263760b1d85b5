"""A run that starts again by itself: a process was lost with a part of the network that nobody else has."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from prdp.checkpoints.checkpoint import find_latest
from prdp.config import TrainConfig
from prdp.support.rank_errors import ShardLostError

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

        Raises:
            ShardLostError: `error`, when there were more losses than `cluster.retries` allows without a new checkpoint.
        """
        newest = find_latest(self.config.output_dir)
        self._in_a_row = 1 if newest != self._newest else self._in_a_row + 1
        self._newest = newest
        retries = self.config.cluster.retries
        if self._in_a_row > retries:
            error.add_note(f"lost {self._in_a_row} times without a checkpoint in between (cluster.retries={retries})")
            raise error
        begun = "the run begins again" if newest is None else f"the run goes on from {newest}"
        _log.warning("%s; %s", error, begun)
        if newest is not None or self.config.checkpoint.resume == "never":
            checkpoint = dataclasses.replace(self.config.checkpoint, resume="auto")
            self.config = dataclasses.replace(self.config, checkpoint=checkpoint)
