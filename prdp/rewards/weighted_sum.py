"""A weighted sum of rewards; every term is logged alone, and a term may be watched without being optimised."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prdp.rewards import build_reward, check_reward
from prdp.rewards.base import Reward, identity_of, waits_of
from prdp.rewards.names import LONGEST, RESERVED, taken
from prdp.rewards.scoring import scored
from prdp.support.suggest import did_you_mean
from prdp.support.targets import TARGET
from prdp.types import Float64, UInt8

KEYS = ("weight", "watch", "reward")
WATCHED = "watch/"
"""Put before the names of terms that are measured and not optimised."""

_NAME = re.compile(r"\w[\w-]*")


@dataclass(frozen=True)
class _Term:
    name: str
    weight: float
    watch: bool
    section: Mapping[str, Any]

    @property
    def label(self) -> str:
        return f"{WATCHED}{self.name}" if self.watch else self.name


def is_weighted_sum(section: Mapping[str, Any]) -> bool:
    """Whether a section of a configuration names this class."""
    return section.get(TARGET) == f"{WeightedSum.__module__}.{WeightedSum.__name__}"


def optimised_terms(section: Mapping[str, Any]) -> dict[str, float] | None:
    """Name -> weight of the terms that a section of a configuration optimises; None where it is no weighted sum."""
    if not is_weighted_sum(section):
        return None
    return {term.name: term.weight for term in _parsed(section.get("terms")) if not term.watch}


class WeightedSum:
    """`sum(weight * term)` over the terms that are not watched.

    Sub-scores are each term's own reward under `<term>`, unweighted, and its sub-scores under `<term>/<sub-score>`;
    those of watched terms start with `watch/`.

    Args:
        terms: name -> {"weight": number, "watch": true or false (the default), "reward": section of a reward}. A
            watched term needs no weight, and one that it has is not used.

    Raises:
        ValueError: by term: no reward, an unknown key, a weight that is missing, 0 or not finite; or nothing to
            optimise. What a term's own constructor raises comes with the term's name before it.
    """

    name = "weighted_sum"

    def __init__(self, terms: Mapping[str, Mapping[str, Any]]) -> None:
        self._terms = _parsed(terms)
        self._rewards: dict[str, Reward] = {}
        for term in self._terms:
            try:
                self._rewards[term.name] = build_reward(term.section)
            except (ValueError, OSError, ImportError) as error:
                raise ValueError(f"terms.{term.name}: {error}") from error

    @classmethod
    def check(cls, terms: Mapping[str, Mapping[str, Any]]) -> None:
        """Check every term as `prdp validate` checks a reward that stands alone.

        Raises:
            ValueError: all that is wrong, a line per term, with its name.
        """
        problems = []
        for term in _parsed(terms):
            try:
                check_reward(f"terms.{term.name}.reward", term.section)
            except ValueError as error:
                problems.append(str(error))
        if problems:
            raise ValueError("\n".join(problems))

    @property
    def version(self) -> str:
        """The formula with the version of every term: '10*pickscore(1) + 0.05*aesthetic(2), watching hpsv2(1)'."""

        def shown(term: _Term) -> str:
            return f"{term.name}({self._rewards[term.name].version})"

        optimised = " + ".join(f"{term.weight:.12g}*{shown(term)}" for term in self._terms if not term.watch)
        watched = ", ".join(shown(term) for term in self._terms if term.watch)
        return f"{optimised}, watching {watched}" if watched else optimised

    @property
    def waits_seconds(self) -> float:
        """Seconds that one call may wait for the servers of its terms, one after the other."""
        return sum(waits_of(reward) for reward in self._rewards.values())

    def identity(self) -> dict[str, Any]:
        """Name and version of the sum and of every term, with its weight or that it is watched."""
        terms = {
            term.name: {
                **identity_of(self._rewards[term.name]),
                **({"watch": True} if term.watch else {"weight": term.weight}),
            }
            for term in self._terms
        }
        return {"name": self.name, "version": self.version, "terms": terms}

    def score(
        self, images: UInt8, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> tuple[Float64, dict[str, Float64]]:
        """Rewards float64 [B] of uint8 images [B, H, W, 3], and the terms as sub-scores, float64 [B] each.

        Raises:
            RewardError: a term raised, or answered with something else than B finite numbers; names the term.
        """
        total = np.zeros(len(images))
        parts: dict[str, Float64] = {}
        for term in self._terms:
            reward = self._rewards[term.name]
            scores, own = scored(reward, images, prompts, metadata, what=f"term '{term.name}'")
            if not term.watch:
                total += term.weight * scores
            parts[term.label] = scores
            parts.update({f"{term.label}/{name}": values for name, values in own.items()})
        return total, parts


def _parsed(terms: Any) -> list[_Term]:
    if not isinstance(terms, Mapping) or not terms:
        raise ValueError(f"terms is {terms!r}: must be a mapping of at least one name to weight and reward")
    parsed, problems = [], []
    for name, content in terms.items():
        key = f"terms.{name}"
        found = _problem(key, str(name), content, list(terms))
        if found:
            problems.append(found)
            continue
        watch = bool(content.get("watch", False))
        parsed.append(_Term(str(name), 0.0 if watch else float(content["weight"]), watch, content["reward"]))
    if not problems and all(term.watch for term in parsed):
        problems.append("terms: all of them are watched, and nothing is left to optimise")
    if problems:
        raise ValueError("\n".join(problems))
    return parsed


def _problem(key: str, name: str, content: Any, names: Sequence[str]) -> str | None:
    """What is wrong with one term, or None."""
    if taken(name) or len(name) > LONGEST or not _NAME.fullmatch(name):
        return f"{key}: a term is named by letters, digits, _ and -, and not {', '.join(sorted(RESERVED))}"
    if not isinstance(content, Mapping):
        return f"{key}={content!r}: must be a mapping with weight and reward"
    for stray in content:
        if stray not in KEYS:
            return f"{key}.{stray}={content[stray]!r}: unknown key{did_you_mean(str(stray), KEYS) or _takes()}"
    if not isinstance(content.get("reward"), Mapping):
        others = [other for other in names if other != name]
        return f"{key}.reward: must be the section of a reward, with _target_{did_you_mean(name, others)}"
    watch, weight = content.get("watch", False), content.get("weight")
    if not isinstance(watch, bool):
        return f"{key}.watch={watch!r}: must be true or false"
    number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not watch and not (number and math.isfinite(float(weight or 0)) and weight != 0):
        return f"{key}.weight={weight!r}: must be a finite number other than 0; watch: true only measures a term"
    return None


def _takes() -> str:
    return f"; a term takes {', '.join(KEYS)}"
