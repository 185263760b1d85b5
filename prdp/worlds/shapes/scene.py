"""Scenes of the shapes world: one to three coloured objects, one spatial relation, one background."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RGB = tuple[int, int, int]

COLORS: dict[str, RGB] = {
    "red": (220, 30, 35),
    "orange": (255, 140, 0),
    "yellow": (250, 225, 40),
    "green": (40, 175, 60),
    "cyan": (40, 210, 225),
    "blue": (35, 70, 225),
    "purple": (140, 30, 190),
    "pink": (250, 100, 180),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "diamond", "star", "cross")
SIZES: tuple[str, ...] = ("small", "large")
FILLS: tuple[str, ...] = ("solid", "hollow", "striped")
BACKGROUNDS: dict[str, RGB] = {
    "white": (250, 250, 250),
    "gray": (128, 128, 128),
    "black": (8, 8, 8),
    "beige": (225, 205, 165),
}
# Each relation as (axis, sign): objects[0] lies on the side `sign` of objects[1] along x (0) or y (1, pointing down).
RELATIONS: dict[str, tuple[int, int]] = {
    "left of": (0, -1),
    "right of": (0, 1),
    "above": (1, -1),
    "below": (1, 1),
}
MAX_OBJECTS = 3

_COLOR_NAMES = tuple(COLORS)
_BACKGROUND_NAMES = tuple(BACKGROUNDS)
_RELATION_NAMES = tuple(RELATIONS)


def _check(field: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{field} is {value!r}, expected one of {', '.join(allowed)}")


@dataclass(frozen=True, slots=True)
class Obj:
    """One object. Raises ValueError when an attribute is outside the vocabulary."""

    color: str
    shape: str
    size: str
    fill: str

    def __post_init__(self) -> None:
        _check("color", self.color, _COLOR_NAMES)
        _check("shape", self.shape, SHAPES)
        _check("size", self.size, SIZES)
        _check("fill", self.fill, FILLS)


@dataclass(frozen=True, slots=True)
class Scene:
    """One to three objects on a background.

    `relation` places objects[0] relative to objects[1] and is None exactly when there is one object; a third object
    may lie anywhere. The (color, shape) pairs of the objects are distinct, so every object can be told apart.
    Raises ValueError when any of this doesn't hold.
    """

    objects: tuple[Obj, ...]
    relation: str | None
    background: str

    def __post_init__(self) -> None:
        count = len(self.objects)
        if not 1 <= count <= MAX_OBJECTS:
            raise ValueError(f"a scene has {count} objects, expected 1 to {MAX_OBJECTS}")
        if count == 1:
            if self.relation is not None:
                raise ValueError(f"relation is {self.relation!r} in a scene of one object, expected None")
        else:
            _check("relation", self.relation, _RELATION_NAMES)
        _check("background", self.background, _BACKGROUND_NAMES)
        pairs = [(o.color, o.shape) for o in self.objects]
        if len(set(pairs)) != count:
            twice = next(pair for pair in pairs if pairs.count(pair) > 1)
            raise ValueError(f"two objects are both a {' '.join(twice)}, expected distinct (color, shape) pairs")


def random_scene(rng: np.random.Generator, num_objects: int | None = None) -> Scene:
    """Draws a scene; every attribute is uniform, given that (color, shape) pairs are distinct.

    num_objects: 1, 2 or 3; None draws it with probabilities 0.3, 0.5, 0.2.
    Raises ValueError for another num_objects.
    """
    # One block of uniforms per scene: scalar calls to the generator would dominate the cost.
    u = rng.random(3 + 4 * MAX_OBJECTS).tolist()
    if num_objects is None:
        num_objects = 1 if u[0] < 0.3 else 2 if u[0] < 0.8 else 3
    elif num_objects not in (1, 2, 3):
        raise ValueError(f"num_objects is {num_objects!r}, expected 1, 2, 3 or None")
    pairs: list[tuple[str, str]] = []
    objects: list[Obj] = []
    for i in range(num_objects):
        a, b, c, d = u[3 + 4 * i : 7 + 4 * i]
        pair = _COLOR_NAMES[int(a * len(_COLOR_NAMES))], SHAPES[int(b * len(SHAPES))]
        while pair in pairs:
            a, b = rng.random(2).tolist()
            pair = _COLOR_NAMES[int(a * len(_COLOR_NAMES))], SHAPES[int(b * len(SHAPES))]
        pairs.append(pair)
        objects.append(Obj(*pair, SIZES[int(c * len(SIZES))], FILLS[int(d * len(FILLS))]))
    relation = _RELATION_NAMES[int(u[1] * len(_RELATION_NAMES))] if num_objects > 1 else None
    return Scene(tuple(objects), relation, _BACKGROUND_NAMES[int(u[2] * len(_BACKGROUND_NAMES))])
