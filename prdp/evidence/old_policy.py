"""The moving old policy: an average of the learning weights that follows them at a rate of its own."""

from __future__ import annotations

from dataclasses import dataclass

from prdp.support.rules import CountOrZero, Fraction, NotNegative


@dataclass(frozen=True)
class OldPolicy:
    """old <- decay * old + (1 - decay) * theta after the last update of every epoch; with its knobs.

    The decay after epoch k, counted from 1, is min(old_decay + old_decay_rise * max(k - old_decay_delay, 0),
    old_decay_limit). With all of it at 0 the old policy is the one that an epoch's updates start from.

    Attributes:
        old_decay: at the start.
        old_decay_rise: per epoch.
        old_decay_delay: epochs before the rise begins.
        old_decay_limit: the largest.
        old_samples: whether the old policy samples, instead of the learning one.
        old_is_reference: whether log-ratios and kl_ref are relative to the old policy, instead of the frozen start.
    """

    old_decay: Fraction = 0.0
    old_decay_rise: NotNegative = 0.0
    old_decay_delay: CountOrZero = 0
    old_decay_limit: Fraction = 0.999
    old_samples: bool = False
    old_is_reference: bool = False

    def decay(self, epochs: int) -> float:
        """Of the average, once so many epochs are done, in [0, 1)."""
        return min(
            self.old_decay + self.old_decay_rise * max(epochs - self.old_decay_delay, 0), self.old_decay_limit
        )
