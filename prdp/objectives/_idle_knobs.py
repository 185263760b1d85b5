"""Knobs that are set and have no effect beside the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prdp.objectives._knobs import Knob, fields_as_knobs, shown

if TYPE_CHECKING:
    from prdp.objectives._method import Method


def idle_knobs(method: Method, given: Mapping[str, Any]) -> list[str]:
    """A line for every given value that differs from its default and has no effect.

    Args:
        given: knobs that are allowed, each by itself.
    """
    kind = given.get("evidence", method.evidence.kind)
    chosen = method.kinds[kind]
    changed = {name for name, value in given.items() if value != method.knobs[name].default}
    lines = []
    for other, evidence in method.kinds.items():
        knobs = fields_as_knobs(evidence)
        for name in sorted(changed & (knobs.keys() - fields_as_knobs(chosen).keys())):
            lines.append(_line(name, given[name], knobs[name], f"has an effect with objective.evidence={other} alone"))
    for name, other in method.idle_without.items():
        if name in changed and not given.get(other, method.knobs[other].default):
            reason = f"has no effect beside objective.{other}={shown(given[other])}"
            lines.append(_line(name, given[name], method.knobs[name], reason))
    moves = {name: value for name, value in given.items() if name in method.old_policy_knobs}
    arrays = {part for name in method.arrays for part in chosen.derived.get(name, (name,))}
    used = any(name in arrays for name, (_, of) in chosen.passes.items() if of == "old")
    used |= any(name in arrays for name, of in chosen.others.items() if of == "old")
    used |= moves.get("old_samples", False) or moves.get("old_is_reference", False)
    knows_old = any(of == "old" for _, of in chosen.passes.values())
    if used and knows_old:
        return lines
    reason = "has an effect with old_samples=true or old_is_reference=true alone"
    if not knows_old:
        others = [f"objective.evidence={name}" for name, one in method.kinds.items() if one.passes]
        reason = f"{kind} evidence knows no old policy; it has an effect with {' or '.join(others) or 'other evidence'}"
    for name in sorted(changed & moves.keys()):
        lines.append(_line(name, given[name], method.old_policy_knobs[name], reason))
    return lines


def _line(name: str, value: Any, knob: Knob, reason: str) -> str:
    return f"objective.{name}={shown(value)}: {reason}; leave it at {shown(knob.default)}"
