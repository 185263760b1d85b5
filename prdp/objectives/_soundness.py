"""Whether a method, which may be anybody's, fits together; told before a run starts."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from prdp.evidence import Evidence, OldPolicy
from prdp.evidence.soundness import answer_problems, class_problems
from prdp.objectives._knobs import Knob

if TYPE_CHECKING:
    import torch

    from prdp.objectives._method import Method

BATCH_ARRAYS = ("rewards", "group_ids", "history", "reward_terms", "reward_weights")
"""What a loss may ask for beside the arrays of its evidence."""


def method_problem(method: Method) -> str | None:
    """The first thing that does not fit together in a method, to follow its name in a message; None if all does."""
    return next(_problems(method), None)


def loss_result(name: str, result: Any) -> tuple[torch.Tensor, dict[str, float]]:
    """What a loss returned, if it is a scalar to differentiate and counts.

    Raises:
        ValueError: what it returned, and what was expected.
    """
    shown = f"the loss {name} returned "
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], Mapping):
        raise ValueError(f"{shown}{type(result).__name__}, expected a scalar tensor and a dict of counts")
    loss, metrics = result
    if getattr(loss, "shape", None) != () or not loss.requires_grad:
        what = f"a tensor of shape {tuple(loss.shape)}" if hasattr(loss, "shape") else type(loss).__name__
        expected = "a scalar tensor that depends on its channels, and not on detached ones"
        raise ValueError(f"{shown}{what}, expected {expected}")
    return loss, dict(metrics)


def _problems(method: Method) -> Iterator[str]:
    old = method.old_policy
    for evidence in (method.evidence, *method.also):
        if not isinstance(evidence, Evidence):
            yield f"has the evidence {evidence!r}, must be an instance of a prdp.evidence.Evidence"
            return
    if old is not None and not isinstance(old, OldPolicy):
        yield f"has the old_policy {old!r}, must be an instance of prdp.evidence.OldPolicy, or None"
        return
    for evidence in method.kinds.values():
        yield from (f"has the evidence {problem}" for problem in class_problems(evidence))
    for entry in inspect.signature(method.loss).parameters.values():
        if entry.kind in (entry.VAR_POSITIONAL, entry.VAR_KEYWORD):
            yield f"takes {entry}; its parameters have to be named, as they say which arrays and knobs it takes"
    for evidence in method.kinds.values():
        yield from _array_problems(method, evidence)
    yield from _unknown("linear", method.linear, method.arrays, "arrays that it takes")
    yield from _unknown("watched", method.watched, method.arrays, "arrays that it takes")
    yield from _unknown("only_with", method.only_with, method.arrays, "arrays that it takes")
    yield from _knob_problems(method)
    yield from _unknown("only_with", method.only_with.values(), method.loss_knobs, "knobs of the loss")
    yield from _unknown("idle_without", (*method.idle_without, *method.idle_without.values()), method.knobs, "knobs")
    unless = (*method.idle_unless, *(other for other, _ in method.idle_unless.values()))
    yield from _unknown("idle_unless", unless, method.knobs, "knobs")
    if "history" in method.arrays and "buffer_size" not in method.loss_knobs:
        yield "takes 'history', and has no knob buffer_size, which says how many rewards of a prompt are remembered"


def _array_problems(method: Method, evidence: Evidence) -> Iterator[str]:
    own = (*evidence.channels, *(name for name, (part, _) in evidence.derived.items() if part in evidence.channels))
    known = (*dict.fromkeys((*own, *evidence.data, *evidence.derived)), *BATCH_ARRAYS)
    kind = type(evidence).__name__
    for name in method.arrays:
        if name not in known:
            yield (
                f"takes '{name}', which is none of the arrays {', '.join(known)} of {kind} evidence; knobs come after "
                "a *, and a prdp.objectives.Method around the loss names other evidence"
            )
    if not set(own) & set(method.arrays):
        yield f"must take {' or '.join(own)}, the channels of {kind} evidence"
    whose = {name: of for name, (_, of) in evidence.passes.items()} | dict(evidence.others)
    for name in method.arrays:
        if whose.get(name) == "old" and method.old_policy is None:
            yield f"takes '{name}', of an old policy; give its Method old_policy=OldPolicy()"
    yield from (f"has the evidence {problem}" for problem in answer_problems(evidence, method.arrays))


def _knob_problems(method: Method) -> Iterator[str]:
    hints = inspect.get_annotations(method.loss)
    for entry in inspect.signature(method.loss).parameters.values():
        if entry.kind is entry.KEYWORD_ONLY and (entry.name not in hints or entry.default is entry.empty):
            lacking = "an annotation, which says what may be set" if entry.name not in hints else "a default"
            yield f"has the knob '{entry.name}' without {lacking}"
            return
    seen: dict[str, Knob] = {}
    for knobs in (method.loss_knobs, method.evidence_knobs, method.old_policy_knobs):
        for name, knob in knobs.items():
            if name in seen or name in ("name", "_target_"):
                yield f"has the knob '{name}' twice, in the loss, the evidence or the old policy, or a key of that name"
            try:
                allowed = knob.bound
            except TypeError as error:
                yield f"has the knob '{name}': {error}, must be a bool, an int, a float or a Literal"
                return
            if not allowed.allows(knob.default):
                yield f"has the knob '{name}' with the default {knob.default!r}: must be {allowed.words}"
        seen |= knobs


def _unknown(what: str, names: Iterable[str], known: Collection[str], expected: str) -> Iterator[str]:
    for name in names:
        if name not in known:
            yield f"has '{name}' in {what}, must be of the {expected}: {', '.join(known) or 'none'}"
