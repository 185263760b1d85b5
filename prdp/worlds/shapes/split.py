"""A fixed split of the scenes that keeps whole combinations of attributes out of training."""

from __future__ import annotations

import numpy as np

from prdp.worlds.shapes.grammar import caption
from prdp.worlds.shapes.scene import RELATIONS, Scene, random_scene

SPLITS: tuple[str, ...] = ("train", "heldout")

HELD_OUT_COLOR_SHAPE: frozenset[tuple[str, str]] = frozenset(
    {("purple", "star"), ("green", "triangle"), ("orange", "cross")}
)
HELD_OUT_FILL_SHAPE: frozenset[tuple[str, str]] = frozenset({("striped", "diamond")})
# Written with "left of" and "above"; the same arrangement said the other way round is held out with it.
_HELD_OUT_ARRANGEMENTS: tuple[tuple[str, str, str], ...] = (
    ("circle", "left of", "triangle"),
    ("star", "above", "square"),
    ("square", "left of", "circle"),
    ("cross", "above", "circle"),
)
_INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
HELD_OUT_SHAPE_RELATION_SHAPE: frozenset[tuple[str, str, str]] = frozenset(_HELD_OUT_ARRANGEMENTS) | frozenset(
    (b, _INVERSE[relation], a) for a, relation, b in _HELD_OUT_ARRANGEMENTS
)
assert set(_INVERSE) == set(RELATIONS)


def heldout_reasons(scene: Scene) -> tuple[str, ...]:
    """The held-out combinations that a scene contains, as phrases such as "purple star"; empty for a training scene."""
    reasons = []
    for o in scene.objects:
        if (o.color, o.shape) in HELD_OUT_COLOR_SHAPE:
            reasons.append(f"{o.color} {o.shape}")
        if (o.fill, o.shape) in HELD_OUT_FILL_SHAPE:
            reasons.append(f"{o.fill} {o.shape}")
    if scene.relation is not None:
        triple = (scene.objects[0].shape, scene.relation, scene.objects[1].shape)
        if triple in HELD_OUT_SHAPE_RELATION_SHAPE:
            reasons.append(" ".join(triple))
    return tuple(dict.fromkeys(reasons))


def is_held_out(scene: Scene) -> bool:
    """Whether a scene contains at least one held-out combination."""
    return bool(heldout_reasons(scene))


def _split_index(split: str) -> int:
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, expected one of {', '.join(SPLITS)}")
    return SPLITS.index(split)


def _draw(rng: np.random.Generator, split_index: int) -> Scene:
    while True:
        scene = random_scene(rng)
        if is_held_out(scene) == bool(split_index):
            return scene


def scene_at(split: str, index: int, seed: int = 0) -> Scene:
    """Scene number `index` (>= 0) of an endless random sequence of one split; a pure function of its arguments.

    Scenes repeat now and then; `distinct_scenes` gives a sequence without repeats.
    Raises ValueError for an unknown split or a negative index or seed.
    """
    which = _split_index(split)
    if index < 0 or seed < 0:
        raise ValueError(f"index is {index} and seed is {seed}, expected both >= 0")
    return _draw(np.random.default_rng((seed, which, index)), which)


def distinct_scenes(split: str, count: int, seed: int = 0) -> list[Scene]:
    """`count` scenes of one split with pairwise distinct captions, in random order; a pure function of its arguments.

    There are only about a thousand scenes of one object, so a long list holds them all and is mostly made of scenes of
    two and three objects. Raises ValueError for an unknown split or a negative count or seed.
    """
    which = _split_index(split)
    if count < 0 or seed < 0:
        raise ValueError(f"count is {count} and seed is {seed}, expected both >= 0")
    rng = np.random.default_rng((seed, 2 + which))
    found: dict[str, Scene] = {}
    while len(found) < count:
        scene = _draw(rng, which)
        found.setdefault(caption(scene), scene)
    scenes = list(found.values())
    # Scenes of one object run out early, so without a shuffle the mix would drift along the list.
    return [scenes[i] for i in rng.permutation(count)]
