"""Whether classifier-free guidance is on."""

from __future__ import annotations


def guided(guidance_scale: float) -> bool:
    """Whether outputs are u + w (c - u) of two branches, or c of the conditional one alone.

    Above a scale w of 1 only, as in diffusers' pipelines: below, u and c are not mixed, and 0 does not mean u.
    """
    return guidance_scale > 1.0
