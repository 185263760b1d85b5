"""The moving old policy: an average of the learning weights that follows them at a rate of its own."""

from __future__ import annotations

from dataclasses import dataclass

from prdp.support.rules import CountOrZero, Fraction, NotNegative


@dataclass(frozen=True)
class OldPolicy:
    """old <- decay * old + (1 - decay) * theta after every update; with its knobs.

    The decay after update k, counted from 1, is min(old_decay + old_decay_rise * max(k - old_decay_delay, 0),
    old_decay_limit). With all of it at 0 the old policy is the one that an
    update starts from.

    Attributes:
        old_decay: at the start.
        old_decay_rise: per update.
        old_decay_delay: updates before the rise begins.
        old_decay_limit: the largest.
        old_samples: whether the old policy samples, instead of the learning one.
    """

    old_decay: Fraction = 0.0
    old_decay_rise: NotNegative = 0.0
    old_decay_delay: CountOrZero = 0
    old_decay_limit: Fraction = 0.999
    old_samples: bool = False

    def decay(self, updates: int) -> float:
        """Of the average, once so many updates are done, in [0, 1)."""
        return min(
            self.old_decay + self.old_decay_rise * max(updates - self.old_decay_delay, 0), self.old_decay_limit
        )
