"""Knobs that are set and have no effect beside the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from prdp.evidence import Evidence
from prdp.evidence.base import Of
from prdp.objectives._knobs import fields_as_knobs, shown

if TYPE_CHECKING:
    from prdp.objectives._method import Method


def idle_knobs(method: Method, given: Mapping[str, Any]) -> list[str]:
    """A line for every given value that differs from its default and has no effect.

    Args:
        given: knobs that are allowed, each by itself.
    """
    values = {name: given.get(name, knob.default) for name, knob in method.knobs.items()}
    reasons = dict(_idle_by_evidence(method, values))
    reasons |= _idle_by_knobs(method, values)
    if method.old_policy is not None:
        reasons |= _idle_of_old_policy(method, values)
    defaults = {name: knob.default for name, knob in method.knobs.items()}
    return [
        f"objective.{name}={shown(given[name])}: {reason}; leave it at {shown(defaults[name])}"
        for name, reason in reasons.items()
        if name in given and given[name] != defaults[name]
    ]


def _chosen(method: Method, values: Mapping[str, Any]) -> Evidence:
    return method.kinds[values.get("evidence", method.evidence.kind)]


def _idle_by_evidence(method: Method, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Knobs of evidence that is not taken, and why each is idle."""
    own = fields_as_knobs(_chosen(method, values))
    for other, evidence in method.kinds.items():
        for name in sorted(fields_as_knobs(evidence).keys() - own.keys()):
            yield name, f"has an effect with objective.evidence={other} alone"


def _idle_by_knobs(method: Method, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, other in method.idle_without.items():
        if not values[other]:
            yield name, _beside(values, other)
    for name, (other, needed) in method.idle_unless.items():
        if values[other] != needed:
            yield name, _beside(values, other)


def _idle_of_old_policy(method: Method, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Knobs of an old policy that nothing asks for, or of a part of it."""
    chosen, names = _chosen(method, values), sorted(method.old_policy_knobs)
    if all(of != "old" for _, of in chosen.passes.values()):
        others = [f"objective.evidence={name}" for name, one in method.kinds.items() if one.passes]
        kind, told = values.get("evidence", chosen.kind), " or ".join(others) or "other evidence"
        for name in names:
            yield name, f"{kind} evidence knows no old policy; it has an effect with {told}"
        return
    left_out = {array: knob for array, knob in method.only_with.items() if not values[knob]}
    asked = {of for array in method.arrays if array not in left_out for of in _whose(chosen, array)}

    def would_ask(of: Of) -> list[str]:
        return [knob for array, knob in left_out.items() if of in _whose(chosen, array)]

    if "reference" not in asked:
        names.remove("old_is_reference")
        yield "old_is_reference", _beside(values, *would_ask("reference"))
    if not ("old" in asked or values["old_samples"] or (values["old_is_reference"] and "reference" in asked)):
        ways = ["old_samples=true", "old_is_reference=true", *(f"{knob} above 0" for knob in would_ask("old"))]
        for name in names:
            yield name, f"has an effect with {' or '.join(ways)} alone"
    elif not values["old_decay_rise"]:
        yield "old_decay_delay", _beside(values, "old_decay_rise")
        if values["old_decay"] <= values["old_decay_limit"]:
            yield "old_decay_limit", _beside(values, "old_decay_rise")


def _whose(evidence: Evidence, array: str) -> set[Of]:
    """The networks beside the policy that an array is computed from."""
    parts = evidence.derived.get(array, (array,))
    passes = {evidence.passes[part][1] for part in parts if part in evidence.passes}
    return passes | {evidence.others[part] for part in parts if part in evidence.others}


def _beside(values: Mapping[str, Any], *others: str) -> str:
    return "has no effect beside " + " and ".join(f"objective.{other}={shown(values[other])}" for other in others)
