"""What may happen to a learner of many processes; each names the rank, and a new start goes on from a checkpoint."""

from __future__ import annotations

from prdp.support.errors import ResumableError, UserError


class RankLostError(ResumableError, RuntimeError):
    """A rank died, or hung and was ended.

    Attributes:
        number: of the rank.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


class ReductionError(ResumableError, RuntimeError):
    """Gradients could not be summed, or weights not gathered: the processes lost each other on the way."""


class ShardLostError(ResumableError, RuntimeError):
    """A rank was lost whose part of the weights nobody else has; a checkpoint has it."""


class ShardMemoryError(ShardLostError):
    """Memory ran out in a rank whose passes others make with it, so that none of them can go on."""


class RankMismatchError(UserError, RuntimeError):
    """A rank was built otherwise than the others: its versions, its configuration or its network differ."""


class RankDriftError(ResumableError, RuntimeError):
    """A rank came to other weights than the others, from the same start."""
