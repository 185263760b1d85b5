"""The ways of merging that `merge=NAME` chooses, with their knobs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from prdp.config import MISSING
from prdp.support.suggest import did_you_mean

if TYPE_CHECKING:
    from prdp.experts.merging import MergedLayer, Part


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True)
class MeanDelta:
    """The weighted mean of deltas, exactly, by concatenated factors; the rank is the sum of the ranks."""

    name: ClassVar[str] = "mean_delta"
    exact: ClassVar[bool] = True

    def layer(self, parts: Sequence[Part], scale: float) -> MergedLayer:
        """One layer; `scale` multiplies the result."""
        from prdp.experts.merging import MergedLayer, concatenated, norm

        layer = concatenated(_scaled(parts, scale))
        return MergedLayer(layer, norm(layer), 0.0)


@dataclass(frozen=True)
class Svd:
    """The weighted mean of deltas, then the nearest of a given rank."""

    rank: int
    name: ClassVar[str] = "svd"
    exact: ClassVar[bool] = False

    def layer(self, parts: Sequence[Part], scale: float) -> MergedLayer:
        """One layer; `scale` multiplies the result."""
        from prdp.experts.merging import concatenated, truncated

        return truncated(concatenated(_scaled(parts, scale)), self.rank)


@dataclass(frozen=True)
class Ties:
    """TIES-Merging on deltas, then the nearest of a rank; null keeps the rank it has."""

    density: float
    rank: int | None
    name: ClassVar[str] = "ties"
    exact: ClassVar[bool] = False

    def layer(self, parts: Sequence[Part], scale: float) -> MergedLayer:
        """One layer; `scale` multiplies the result."""
        from prdp.experts.merging import factorised, ties

        return factorised(scale * ties(parts, self.density), parts[0].layer, self.rank)


@dataclass(frozen=True)
class Dare:
    """DARE on deltas (drop at random, rescale, average), then the nearest of a rank; null keeps the rank it has."""

    density: float
    rank: int | None
    seed: int
    name: ClassVar[str] = "dare"
    exact: ClassVar[bool] = False

    def layer(self, parts: Sequence[Part], scale: float) -> MergedLayer:
        """One layer; `scale` multiplies the result."""
        from prdp.experts.merging import dare, factorised

        return factorised(dare(_scaled(parts, scale), self.density), parts[0].layer, self.rank)


Method = MeanDelta | Svd | Ties | Dare
METHODS: Mapping[str, type[Method]] = {one.name: one for one in (MeanDelta, Svd, Ties, Dare)}
_ALLOWED: Mapping[str, tuple[Any, str]] = {
    "rank": (lambda value: _is_int(value) and value >= 1, "an integer, at least 1"),
    "density": (
        lambda value: isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1,
        "a number above 0 and at most 1",
    ),
    "seed": (lambda value: _is_int(value) and value >= 0, "an integer, at least 0"),
}


def method_problems(section: Mapping[str, Any]) -> list[str]:
    """What is wrong with the section `merge`, a line each."""
    name, knobs = str(section.get("name")), {key: value for key, value in section.items() if key != "name"}
    if name not in METHODS:
        return [f"merge.name={name}: must be one of {', '.join(METHODS)}{did_you_mean(name, METHODS)}"]
    fields = {field.name: field for field in dataclasses.fields(METHODS[name])}
    takes = f"it takes {', '.join(fields)}" if fields else "it takes none"
    stray = {key: value for key, value in knobs.items() if key not in fields}
    problems = [f"merge.{key}={value}: {name} has no such knob, {takes}" for key, value in stray.items()]
    for key, field in fields.items():
        value = knobs.get(key, MISSING)
        may_be_null = "None" in str(field.type)
        allows, words = _ALLOWED[key]
        if value == MISSING:
            problems.append(f"no value for merge.{key}; give it: merge.{key}=...")
        elif not (allows(value) or (value is None and may_be_null)):
            shown = "null" if value is None else value
            problems.append(f"merge.{key}={shown}: must be {words}{', or null' if may_be_null else ''}")
    return problems


def build_method(section: Mapping[str, Any]) -> Method:
    """The method of a section that `method_problems` finds nothing in."""
    return METHODS[section["name"]](**{key: value for key, value in section.items() if key != "name"})


def _scaled(parts: Sequence[Part], scale: float) -> list[Part]:
    return [dataclasses.replace(part, weight=scale * part.weight) for part in parts]
