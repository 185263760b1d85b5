"""The vocabulary of knobs: the annotation of an objective's keyword argument says what may be set."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from prdp.support.rules import Rule, optional

Finite = Annotated[float, Rule(math.isfinite, "a finite number")]
Positive = Annotated[float, Rule(lambda value: 0 < value < math.inf, "a finite number above 0")]
NotNegative = Annotated[float, Rule(lambda value: 0 <= value < math.inf, "a finite number, at least 0")]
Count = Annotated[int, Rule(lambda value: value >= 1, "an integer, at least 1")]
CountOrZero = Annotated[int, Rule(lambda value: value >= 0, "an integer, at least 0")]


@dataclass(frozen=True)
class Knob:
    """One keyword argument.

    Attributes:
        annotation: its type.
        default: its value where none is given.
    """

    annotation: Any
    default: Any

    @property
    def bound(self) -> Rule:
        """What its annotation allows."""
        return _bound(self.annotation)


def fields_as_knobs(settings: Any) -> dict[str, Knob]:
    """The fields of a dataclass's instance, whose values are the defaults."""
    hints = get_type_hints(type(settings), include_extras=True)
    return {one.name: Knob(hints[one.name], getattr(settings, one.name)) for one in dataclasses.fields(settings)}


def mistakes(owner: str, knobs: Mapping[str, Knob], given: Mapping[str, Any]) -> list[str]:
    """A line for every given value that is no knob of `owner` or not what the knob allows."""
    lines = []
    for name, value in given.items():
        if name not in knobs:
            lines.append(
                f"objective.{name}={shown(value)}: {owner} has no such knob, it takes {', '.join(knobs)}; "
                f"leave it out, by ~objective.{name} where a file sets it"
            )
        elif not knobs[name].bound.allows(value):
            lines.append(f"objective.{name}={shown(value)}: must be {knobs[name].bound.words}")
    return lines


def _bound(annotation: Any) -> Rule:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        [inner] = (_bound(part) for part in parts if part is not NoneType)
        return optional(inner)
    if origin is Annotated:
        kind, narrower = _bound(parts[0]), parts[1]
        return Rule(lambda value: kind.allows(value) and narrower.allows(value), narrower.words)
    if origin is Literal:
        return Rule(lambda value: value in parts, f"one of {', '.join(repr(part) for part in parts)}")
    if annotation is bool:
        return Rule(lambda value: isinstance(value, bool), "true or false")
    if annotation in (int, float):
        numbers = (int,) if annotation is int else (int, float)
        return Rule(
            lambda value: isinstance(value, numbers) and not isinstance(value, bool),
            "an integer" if annotation is int else "a number",
        )
    raise TypeError(f"a knob cannot be a {annotation}")


def shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
