"""What a value may be, as part of its annotation: `Annotated[type, rule]`. Checks and help are read from there."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Rule:
    """Whether a value is allowed, and in words which values are.

    Attributes:
        allows: of a value that has the annotated type already.
        words: go on a sentence that begins with 'must be'.
        choices: all that is allowed, or the names among it, from which a near miss is suggested.
        each: whether it is about every element of a list instead of about the list.
    """

    allows: Callable[[Any], bool]
    words: str
    choices: tuple[str, ...] = ()
    each: bool = False


def at_least(bound: int) -> Rule:
    return Rule(lambda value: math.isfinite(value) and value >= bound, f"at least {bound}")


def above(bound: float, finite: bool = True) -> Rule:
    return Rule(
        lambda value: value > bound and (math.isfinite(value) or not finite),
        f"a{' finite' if finite else ''} number above {bound:g}",
    )


def between(low: float, high: float) -> Rule:
    """Both are allowed."""
    return Rule(lambda value: low <= value <= high, f"from {low:g} to {high:g}")


def fraction() -> Rule:
    return Rule(lambda value: 0 <= value < 1, "at least 0 and below 1")


def one_of(*choices: str) -> Rule:
    return Rule(lambda value: value in choices, "one of " + ", ".join(choices), choices)


def optional(rule: Rule) -> Rule:
    choices = (*rule.choices, "null") if rule.choices else ()
    return Rule(lambda value: value is None or rule.allows(value), f"{rule.words}, or null", choices)


ANYTHING = Rule(lambda value: True, "anything")
FILLED = Rule(lambda value: bool(value.strip()), "text, and not empty")

Count = Annotated[int, at_least(1)]
CountOrZero = Annotated[int, at_least(0)]
Positive = Annotated[float, above(0)]
PositiveOrInfinite = Annotated[float, above(0, finite=False)]
NotNegative = Annotated[float, at_least(0)]
Fraction = Annotated[float, fraction()]
Share = Annotated[float, Rule(lambda value: 0 < value <= 1, "above 0 and at most 1")]
Text = Annotated[str, FILLED]
AnyText = Annotated[str, ANYTHING]


def rule_of(annotation: Any) -> Rule | None:
    """The rule in an annotation: `Annotated[X, rule]`, that or None, or a list of those; None where there is none."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return next((part for part in parts[1:] if isinstance(part, Rule)), None)
    if origin in (Union, UnionType):
        inner = [rule for part in parts if part is not NoneType and (rule := rule_of(part)) is not None]
        return optional(inner[0]) if len(inner) == 1 and NoneType in parts else None
    if origin is list:
        element = rule_of(parts[0])
        return None if element is None else dataclasses.replace(element, each=True)
    return None


@cache
def rules_of(schema: type) -> dict[str, Rule]:
    """Dotted key -> rule, of every key of a dataclass and of the dataclasses inside that has one."""
    rules: dict[str, Rule] = {}
    for name, annotation in get_type_hints(schema, include_extras=True).items():
        rule = rule_of(annotation)
        if rule is not None:
            rules[name] = rule
        elif isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
            rules.update({f"{name}.{key}": inner for key, inner in rules_of(annotation).items()})
    return rules
