"""Whether a kind of evidence, which may be anybody's, fits together; told before a run starts."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, get_args

from prdp.evidence.base import Evidence, Of

_NAMES = ("channels", "sampled", "data", "of_steps", "keeps")
_BY_NAME = ("passes", "derived", "others")
_OF_RECORDERS = ("needs_reference", "needs_float32")


def class_problems(evidence: Evidence) -> Iterator[str]:
    """What does not fit together in the class variables, each to follow 'has the evidence'."""
    kind = type(evidence).__name__
    if "channels" not in dir(evidence):
        yield f"{kind}, which names no channels: a class variable, such as channels = ('error',)"
        return
    for variable in _NAMES:
        names = getattr(evidence, variable)
        if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
            yield f"{kind} with {variable}={names!r}, must be a tuple of names, such as ('error',)"
            return
    if not evidence.channels:
        yield f"{kind} without channels, must have at least one"
    own, data = evidence.channels, evidence.data
    yield from _not_among(kind, "sampled", evidence.sampled, own, "channels")
    yield from _not_among(kind, "data", (name for name in data if name in own), (), "names of no channel")
    for variable in _BY_NAME:
        if not isinstance(getattr(evidence, variable), Mapping):
            yield f"{kind} with {variable}={getattr(evidence, variable)!r}, must be a mapping by name"
            return
    yield from _not_among(kind, "of_steps", evidence.of_steps, data, "data")
    yield from _not_among(kind, "others", evidence.others, own, "channels")
    yield from _not_among(kind, "passes", evidence.passes, data, "data")
    for name, where in evidence.passes.items():
        if not _pair(where) or where[0] not in own or where[1] not in get_args(Of):
            yield (
                f"{kind} with {where!r} in passes of '{name}', must be a channel ({', '.join(own)}) and whose "
                f"({', '.join(get_args(Of))})"
            )
    for name, of in evidence.others.items():
        if of not in get_args(Of):
            yield f"{kind} with {of!r} in others of '{name}', must be one of {', '.join(get_args(Of))}"
    for name, parts in evidence.derived.items():
        if not _pair(parts) or any(part not in (*own, *data) for part in parts):
            yield f"{kind} with {parts!r} in derived of '{name}', must be two of {', '.join((*own, *data))}"


def answer_problems(evidence: Evidence, arrays: Collection[str]) -> Iterator[str]:
    """What does not fit in what a kind of evidence answers for a loss that takes these arrays; as `class_problems`."""
    arrays = tuple(dict.fromkeys(part for name in arrays for part in evidence.derived.get(name, (name,))))
    kind, recorder = type(evidence).__name__, evidence.recorder(arrays)
    lacking = [name for name in _OF_RECORDERS if not isinstance(getattr(recorder, name, None), bool)]
    if not callable(getattr(recorder, "start", None)):
        lacking.append("start")
    if lacking:
        yield (
            f"{kind}, whose recorder gives {_what(recorder)} without {', '.join(lacking)}; must be a "
            f"prdp.diffusion.recording.Recorder, with {' and '.join(_OF_RECORDERS)} true or false, and a method start"
        )
    guard = evidence.guard([name for name in arrays if name in evidence.channels])
    if guard is not None and (guard not in evidence.sampled or guard not in arrays):
        yield (
            f"{kind}, whose guard is {guard!r}; must be a channel that the loss takes and that `sampled` names "
            f"({', '.join(name for name in evidence.sampled if name in arrays) or 'none'}), or None"
        )


def _not_among(kind: str, variable: str, names: Any, known: Collection[str], expected: str) -> Iterator[str]:
    for name in names:
        if name not in known:
            yield f"{kind} with '{name}' in {variable}, must be of the {expected}: {', '.join(known) or 'none'}"


def _pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2


def _what(thing: Any) -> str:
    return f"a {type(thing).__name__}" if thing is not None else "None"
