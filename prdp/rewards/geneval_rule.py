"""GenEval's rule: which objects a prompt asks for, how many, of which colour, and where (Ghosh et al., 2023).

Numbers are those of the authors' `evaluate_images.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prdp.types import Bool, Float64

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
POSITIONS = ("left of", "right of", "above", "below")
THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9
"""Least confidence of a detection, and where the prompt's tag is 'counting'."""
MAX_OBJECTS = 16
"""Most confident detections of a class that are looked at."""
POSITION_THRESHOLD = 0.1
"""Share of two objects' sizes by which their centres may be apart without a direction."""


@dataclass(frozen=True)
class Detection:
    """An object that was found.

    Attributes:
        box: float64 [4], left, top, right, bottom, in pixels.
        score: confidence, 0 to 1.
        mask: bool [H, W], or None where the detector gives boxes alone.
    """

    box: Float64
    score: float
    mask: Bool | None = None


ColorsOf = Callable[[Sequence[Detection], str], Sequence[str]]
"""Colours of objects of a class, of `COLORS`."""


def check_metadata(prompt: str, metadata: Mapping[str, Any]) -> None:
    """Refuse metadata that the rule cannot be applied to.

    Raises:
        ValueError: names the prompt, the clause and what was expected.
    """
    clauses = metadata.get("include")
    if not isinstance(clauses, list) or not clauses:
        raise ValueError(
            f"prompt {prompt!r} has no list 'include' in its metadata: reward=geneval needs prompts such as "
            "prompts=geneval brings, with the objects that a picture should have"
        )
    for kind in ("include", "exclude"):
        for number, clause in enumerate(metadata.get(kind) or []):
            if problem := _problem(clause, number, kind):
                raise ValueError(f"prompt {prompt!r}: {kind}[{number}] {problem}")


def least_confidence(metadata: Mapping[str, Any]) -> float:
    """That a detection has to exceed, by the prompt's tag."""
    return COUNTING_THRESHOLD if metadata.get("tag") == "counting" else THRESHOLD


def confident(found: Mapping[str, Sequence[Detection]], metadata: Mapping[str, Any]) -> dict[str, list[Detection]]:
    """Of each class the most confident detections, in order; classes without one are left out."""
    least = least_confidence(metadata)
    kept = {
        name: sorted((one for one in detections if one.score > least), key=lambda one: -one.score)[:MAX_OBJECTS]
        for name, detections in found.items()
    }
    return {name: detections for name, detections in kept.items() if detections}


def correctness(
    objects: Mapping[str, Sequence[Detection]], metadata: Mapping[str, Any], colors_of: ColorsOf
) -> tuple[float, float]:
    """Whether a picture is as its prompt asks, by the authors' rule, and how much of it is.

    Args:
        objects: by class, the most confident first.
        metadata: of the prompt, see `check_metadata`.
        colors_of: asked for the objects of clauses with a colour.

    Returns:
        1 or 0; and the mean credit of all that is asked for, in [0, 1]. A count earns 1 - |found - wanted| / wanted,
        not below 0; where too many are not excluded, they cost nothing. A colour earns the share of the wanted number
        that has it, a position 1 or 0, and either nothing where the objects are lacking.
    """
    right, credits = True, []
    matched: list[Sequence[Detection] | None] = []
    limits = {clause["class"]: clause["count"] for clause in metadata.get("exclude") or []}
    for clause in metadata["include"]:
        name, count = clause["class"], clause["count"]
        everyone = objects.get(name, [])
        group = everyone[:count]
        excess = len(everyone) - count if name in limits else min(len(everyone) - count, 0)
        credits.append(max(0.0, 1.0 - abs(excess) / count))
        fits = len(group) == count
        if "color" in clause:
            having = list(colors_of(group, name)).count(clause["color"]) if fits else 0
            credits.append(min(having, count) / count)
            fits = fits and having >= count
        if "position" in clause:
            relation, number = clause["position"]
            target = matched[number]
            stands = fits and target is not None and _stands(group, target, relation)
            credits.append(float(stands))
            fits = fits and stands
        right = right and fits
        matched.append(group if fits else None)
    for name, count in limits.items():
        right = right and len(objects.get(name, [])) < count
    return float(right), float(np.mean(credits))


def relative_position(one: Float64, other: Float64) -> set[str]:
    """Where a box lies relative to another: up to two of `POSITIONS`; none where the centres are too near.

    Args:
        one: float64 [4], left, top, right, bottom.
        other: likewise.
    """
    boxes = np.array([one, other], np.float64).reshape(2, 2, 2)
    offset = boxes[0].mean(axis=0) - boxes[1].mean(axis=0)
    sizes = np.abs(boxes[:, 1] - boxes[:, 0]).sum(axis=0)
    beyond = np.maximum(np.abs(offset) - POSITION_THRESHOLD * sizes, 0.0) * np.sign(offset)
    if np.all(np.abs(beyond) < 1e-3):
        return set()
    right, down = beyond / np.linalg.norm(offset)
    told = {"left of": right < -0.5, "right of": right > 0.5, "above": down < -0.5, "below": down > 0.5}
    return {name for name, holds in told.items() if holds}


def _stands(group: Sequence[Detection], target: Sequence[Detection], relation: str) -> bool:
    return all(relation in relative_position(one.box, other.box) for one in group for other in target)


def _problem(clause: Any, number: int, kind: str) -> str | None:
    if not isinstance(clause, Mapping):
        return f"is {clause!r}, must be a mapping"
    if not isinstance(clause.get("class"), str):
        return f"has the class {clause.get('class')!r}, must be the name of an object"
    count = clause.get("count")
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        return f"has the count {count!r}, must be a whole number, at least 1"
    if kind == "exclude":
        return None
    if "color" in clause and clause["color"] not in COLORS:
        return f"has the color {clause['color']!r}, must be one of {', '.join(COLORS)}"
    if "position" in clause:
        position = clause["position"]
        whole = isinstance(position, list | tuple) and len(position) == 2
        if not whole or position[0] not in POSITIONS or position[1] not in range(number):
            return (
                f"has the position {position!r}, must be one of {', '.join(POSITIONS)}, and the number of a clause "
                "before this one"
            )
    return None
