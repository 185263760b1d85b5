"""Scores a picture against a prompt of the shapes world, from the pixels and the prompt alone."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from prdp.worlds.shapes.detect import Detection, detect
from prdp.worlds.shapes.grammar import parse
from prdp.worlds.shapes.scene import BACKGROUNDS, COLORS, FILLS, RELATIONS, SHAPES, SIZES, Obj, Scene

# The weight of each sub-score in the overall score.
WEIGHTS: dict[str, float] = {
    "presence": 0.10,
    "count": 0.14,
    "color": 0.20,
    "shape": 0.20,
    "size": 0.10,
    "fill": 0.10,
    "relation": 0.10,
    "background": 0.06,
}
SUB_SCORES: tuple[str, ...] = tuple(WEIGHTS)

_COLOR_INDEX = {name: i for i, name in enumerate(COLORS)}
_SHAPE_INDEX = {name: i for i, name in enumerate(SHAPES)}
_SIZE_INDEX = {name: i for i, name in enumerate(SIZES)}
_FILL_INDEX = {name: i for i, name in enumerate(FILLS)}
_BACKGROUND_INDEX = {name: i for i, name in enumerate(BACKGROUNDS)}
# Angles in degrees between the offset of two objects and the relation's direction: full score, and none.
_RELATION_FULL, _RELATION_NONE = 38.0, 60.0


def _attributes(found: Detection, wanted: Obj) -> tuple[float, float, float, float, float]:
    """Presence, color, shape, size and fill of one blob for one object; each in [0, 1]."""
    presence = found.plausible * found.weight
    return (
        presence,
        presence * float(found.color[_COLOR_INDEX[wanted.color]]),
        presence * float(found.shape[_SHAPE_INDEX[wanted.shape]]),
        presence * float(found.size[_SIZE_INDEX[wanted.size]]),
        presence * float(found.fill[_FILL_INDEX[wanted.fill]]),
    )


def _relation(first: Detection, second: Detection, relation: str) -> float:
    axis, sign = RELATIONS[relation]
    offset = (first.x - second.x, first.y - second.y)
    angle = math.degrees(math.atan2(abs(offset[1 - axis]), sign * offset[axis]))
    return min(max((_RELATION_NONE - angle) / (_RELATION_NONE - _RELATION_FULL), 0.0), 1.0)


def judge(image: NDArray[np.uint8], prompt: str | Scene) -> dict[str, float]:
    """Scores one picture against a prompt or its scene.

    image: uint8 [H, W, 3]; sizes other than 64x64 are resampled.
    Returns `score`, the weighted mean of the sub-scores, and the sub-scores of SUB_SCORES, all in [0, 1]. presence,
    color, shape, size and fill are means over the prompted objects, each matched to at most one blob; an object
    without a match adds 0. `relation` is NaN when the prompt has one object, and then not part of the mean.
    Raises ValueError for a prompt outside the grammar, or an image of another dtype or shape.
    """
    scene = parse(prompt) if isinstance(prompt, str) else prompt
    backgrounds, found = detect(image)
    wanted = scene.objects
    # Last axis: presence, color, shape, size, fill.
    table = np.zeros((len(wanted), max(len(found), 1), 5))
    for j, blob in enumerate(found):
        for i, obj in enumerate(wanted):
            table[i, j] = _attributes(blob, obj)
    # The relation plays no part in the matching, or swapped objects would go unnoticed.
    rows, columns = linear_sum_assignment(table @ np.array([0.05, 0.35, 0.35, 0.125, 0.125]), maximize=True)
    presence, color, shape, size, fill = (table[rows, columns].sum(0) / len(wanted)).tolist()

    relation = math.nan
    if scene.relation is not None:
        match = dict(zip(rows.tolist(), columns.tolist(), strict=True))
        relation = 0.0
        if found and 0 in match and 1 in match:
            first, second = match[0], match[1]
            certain = min(table[0, first, 0], table[1, second, 0])
            relation = float(certain) * _relation(found[first], found[second], scene.relation)
    # Every blob counts, but a picture without anything like an object has no count to speak of.
    blobs = sum(blob.weight for blob in found)
    objects = sum(blob.weight * blob.plausible for blob in found)
    subs = {
        "presence": presence,
        "count": min(objects, 1.0) * 0.35 ** abs(blobs - len(wanted)),
        "color": color,
        "shape": shape,
        "size": size,
        "fill": fill,
        "relation": relation,
        "background": float(backgrounds[_BACKGROUND_INDEX[scene.background]]),
    }
    present = {name: value for name, value in subs.items() if not math.isnan(value)}
    total = sum(WEIGHTS[name] * value for name, value in present.items())
    return {"score": total / sum(WEIGHTS[name] for name in present), **subs}
