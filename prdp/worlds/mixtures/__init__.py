"""A world of points in the plane: every prompt's distribution, its reward and the optimum are known in closed form."""

from prdp.worlds.mixtures.grammar import SPLITS, caption, count_prompts, is_held_out, parse, prompt_at
from prdp.worlds.mixtures.world import reference_mixtures, rewards_of

__all__ = [
    "SPLITS",
    "caption",
    "count_prompts",
    "is_held_out",
    "parse",
    "prompt_at",
    "reference_mixtures",
    "rewards_of",
]
