"""How far a run is: what its checkpoints hold besides the learner and the queue of rollouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prdp.checkpoints.checkpoint import Checkpoint


@dataclass
class RunState:
    """Changes as the run goes on.

    Attributes:
        epoch: epochs whose updates are done.
        wall_seconds: that the logged ones took, evaluations included.
        unlogged: numbers that are known and not logged yet: of an epoch that was counted, of an evaluation, or of both.
        drawn: which prompts of the source that epoch drew; None when the log of prompts has them.
    """

    epoch: int = 0
    wall_seconds: float = 0.0
    unlogged: dict[str, float] = field(default_factory=dict)
    drawn: Sequence[int] | None = None

    @classmethod
    def of(cls, checkpoint: Checkpoint | None) -> RunState:
        """Where a checkpoint was saved; the start without one."""
        if checkpoint is None:
            return cls()
        state = checkpoint.state
        unlogged, drawn = dict(state.get("unlogged") or {}), state.get("drawn")
        return cls(checkpoint.epoch, float(state["wall_seconds"]), unlogged, drawn)

    def saved(self) -> Mapping[str, Any]:
        """For a checkpoint, which holds its epoch itself."""
        return {"wall_seconds": self.wall_seconds, "unlogged": self.unlogged, "drawn": self.drawn}

    def begun(self, updates: int, updates_per_epoch: int) -> int:
        """Updates of the epoch at hand that are done, of all that a learner has done: more than none when the run is
        ended in the middle of it, or was.
        """
        return updates - self.epoch * updates_per_epoch

    def due(self, every: int, epochs: int) -> bool:
        """Whether what happens every so many epochs (0: only after the last) happens now."""
        return self.epoch == epochs or bool(every and self.epoch % every == 0)
