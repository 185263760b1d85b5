"""Chains that begin within: from noised latents of another image on, in as many steps as are wanted."""

from __future__ import annotations


def rollback(steps: int, strength: float) -> tuple[int, int]:
    """How many steps a whole chain is to have, and at which to begin, so that exactly `steps` are taken.

    Args:
        steps: wanted, at least 1.
        strength: share of the training timesteps that is gone back, above 0 and at most 1; met as nearly as a whole
            number of steps allows.

    Returns:
        (total, first): `sampler.steps` of the chain, and the step of `Sampler.sample(start=...)`.

    Raises:
        ValueError: names the argument, its value and what was expected.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}, expected at least 1")
    if not 0 < strength <= 1:
        raise ValueError(f"strength is {strength}, expected above 0 and at most 1")
    total = max(steps, round(steps / strength))
    return total, total - steps
