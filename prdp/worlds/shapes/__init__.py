"""The shapes world: small pictures of coloured shapes with exact captions and an exact judge."""

from prdp.worlds.shapes.grammar import VOCABULARY, caption, count_prompts, parse
from prdp.worlds.shapes.scene import Obj, Scene, random_scene
from prdp.worlds.shapes.split import distinct_scenes, heldout_reasons, is_held_out, scene_at

__all__ = [
    "VOCABULARY",
    "Obj",
    "Scene",
    "caption",
    "count_prompts",
    "distinct_scenes",
    "heldout_reasons",
    "is_held_out",
    "parse",
    "random_scene",
    "scene_at",
]
