"""Changes exactly one attribute of a scene, for testing what a judge sees."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from prdp.worlds.shapes.scene import (
    BACKGROUNDS,
    COLORS,
    FILLS,
    MAX_OBJECTS,
    RELATIONS,
    SHAPES,
    SIZES,
    Obj,
    Scene,
    random_scene,
)

ATTRIBUTES: tuple[str, ...] = ("color", "shape", "size", "fill", "relation", "background", "count")

_VALUES: dict[str, tuple[str, ...]] = {
    "color": tuple(COLORS),
    "shape": SHAPES,
    "size": SIZES,
    "fill": FILLS,
    "relation": tuple(RELATIONS),
    "background": tuple(BACKGROUNDS),
}


def _other(rng: np.random.Generator, attribute: str, taken: Iterable[str]) -> str:
    values = [value for value in _VALUES[attribute] if value not in set(taken)]
    return values[int(rng.integers(len(values)))]


def _recount(scene: Scene, rng: np.random.Generator) -> Scene:
    count = len(scene.objects)
    if count == MAX_OBJECTS or (count > 1 and rng.random() < 0.5):
        kept = scene.objects[:-1]
        return Scene(kept, scene.relation if len(kept) > 1 else None, scene.background)
    pairs = {(o.color, o.shape) for o in scene.objects}
    extra: Obj | None = None
    while extra is None or (extra.color, extra.shape) in pairs:
        extra = random_scene(rng, 1).objects[0]
    return Scene((*scene.objects, extra), scene.relation or _other(rng, "relation", ()), scene.background)


def corrupt(scene: Scene, attribute: str, rng: np.random.Generator) -> Scene:
    """A scene that differs from `scene` in one attribute: one object's color, shape, size or fill, or the relation,
    the background or the count (an object at the end goes or comes).

    Raises ValueError for an unknown attribute, or for the relation of a scene of one object.
    """
    if attribute not in ATTRIBUTES:
        raise ValueError(f"attribute is {attribute!r}, expected one of {', '.join(ATTRIBUTES)}")
    if attribute == "count":
        return _recount(scene, rng)
    if attribute == "background":
        return replace(scene, background=_other(rng, "background", (scene.background,)))
    if attribute == "relation":
        if scene.relation is None:
            raise ValueError("a scene of one object has no relation to change, expected two or three objects")
        return replace(scene, relation=_other(rng, "relation", (scene.relation,)))
    which = int(rng.integers(len(scene.objects)))
    old = scene.objects[which]
    rest = [o for i, o in enumerate(scene.objects) if i != which]
    taken = {getattr(old, attribute)}
    # The (color, shape) pairs of a scene stay distinct.
    if attribute == "color":
        taken |= {o.color for o in rest if o.shape == old.shape}
    elif attribute == "shape":
        taken |= {o.shape for o in rest if o.color == old.color}
    new = replace(old, **{attribute: _other(rng, attribute, taken)})
    return replace(scene, objects=tuple(new if i == which else o for i, o in enumerate(scene.objects)))
