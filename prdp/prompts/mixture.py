"""Several prompt sources as one, in given shares."""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from prdp.prompts.stream import PromptSource, fingerprint, pass_length, pass_order, source_texts
from prdp.types import Int64


class MixturePrompts:
    """The prompts of all sources; each pass draws from every source its share.

    A source is gone through in passes of its own: none of its prompts comes again before all of them have come, over
    the borders of the mixture's passes. Without weights every source has as many draws as prompts, so that a pass of
    the mixture holds every prompt once. Metadata gets `source`, the source's name, where it has none.

    Args:
        weights: name -> share, any positive numbers; None takes the sources' sizes.
        size: draws in a pass; None takes the sum of the sources' sizes.
        sources: name -> source; in YAML, sections with a `_target_` beside `weights`.

    Attributes:
        pass_length: draws in a pass.
        draws: name -> draws from the source in each pass; they add up to pass_length.
        fingerprint: of all sources and shares; empty when a source has none.

    Raises:
        ValueError: no source, an empty one, names that differ between weights and sources, a weight that is not above
            0, or a pass too short to draw from every source.
    """

    def __init__(
        self, weights: Mapping[str, float] | None = None, size: int | None = None, **sources: PromptSource
    ) -> None:
        if not sources:
            raise ValueError("a mixture of prompts needs sources: sections with a _target_, beside weights")
        for name, source in sources.items():
            if not hasattr(source, "__getitem__") or isinstance(source, str | Mapping):
                raise ValueError(f"mixture source '{name}' is {source!r}, expected a section with a _target_")
            if len(source) == 0:
                raise ValueError(f"mixture source '{name}' holds no prompts")
        if weights is not None:
            _check_weights(weights, sources)
        shares = {name: float(weights[name]) if weights else pass_length(sources[name]) for name in sources}
        self.pass_length = sum(map(pass_length, sources.values())) if size is None else size
        self.draws = _apportioned(shares, self.pass_length)
        self._names, self._sources = list(sources), list(sources.values())
        self._starts = np.cumsum([0, *map(len, self._sources)]).tolist()
        prints = [fingerprint(source) for source in self._sources]
        parts = json.dumps([prints, self._names, list(self.draws.values())]).encode()
        self.fingerprint = hashlib.blake2b(parts, digest_size=8).hexdigest() if all(prints) else ""

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> tuple[str, dict[str, Any]]:
        """Prompt and metadata; the sources stand one after the other. A negative index counts from the end."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is outside a mixture of {len(self)} prompts")
        index %= len(self)
        which = bisect.bisect_right(self._starts, index) - 1
        text, metadata = self._sources[which][index - self._starts[which]]
        return text, {"source": self._names[which], **metadata}

    def texts(self) -> Iterator[str]:
        """The prompts in order."""
        return itertools.chain.from_iterable(map(source_texts, self._sources))

    def pass_order(self, seed: int, number: int, shuffle: bool = True) -> Int64:
        """Int64 [pass_length]: indices of pass `number`, a function of the arguments alone.

        Shuffled, sources and prompts come in random order; else each source in its own, evenly spread.
        """
        parts, places = [], []
        for which, draws in enumerate(self.draws.values()):
            parts.append(self._starts[which] + self._draws_of(which, draws, seed, number, shuffle))
            places.append((np.arange(draws) + 0.5) / draws)
        drawn = np.concatenate(parts)
        if shuffle:
            return np.random.default_rng((seed, number)).permutation(drawn)
        return drawn[np.argsort(np.concatenate(places), kind="stable")]

    def _draws_of(self, which: int, draws: int, seed: int, number: int, shuffle: bool) -> Int64:
        """What the source gives in pass `number`: its own endless stream from number * draws on."""
        source = self._sources[which]
        length, start = pass_length(source), number * draws
        drawn = [
            pass_order(source, _seed_of(seed, which), lap, shuffle)
            for lap in range(start // length, (start + draws - 1) // length + 1)
        ]
        offset = start - start // length * length
        return np.concatenate(drawn)[offset : offset + draws]


def _seed_of(seed: int, which: int) -> int:
    return int(np.random.SeedSequence((seed, which)).generate_state(1, np.uint64)[0])


def _check_weights(weights: Mapping[str, float], sources: Mapping[str, Any]) -> None:
    if not isinstance(weights, Mapping):
        raise ValueError(f"mixture weights are {weights!r}, expected name: share for each source")
    if weights.keys() != sources.keys():
        raise ValueError(
            f"mixture weights are given for {', '.join(weights) or 'none'}, the sources are {', '.join(sources)}"
        )
    for name, weight in weights.items():
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not math.isfinite(weight) or weight <= 0:
            raise ValueError(f"mixture weight of '{name}' is {weight}, expected a number above 0")


def _apportioned(shares: Mapping[str, float], size: int) -> dict[str, int]:
    """Whole numbers in proportion to the shares that add up to size; the largest remainders are rounded up."""
    total = sum(shares.values())
    exact = {name: size * share / total for name, share in shares.items()}
    draws = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (draws[name] - exact[name], name))
    for name in by_remainder[: size - sum(draws.values())]:
        draws[name] += 1
    for name, count in draws.items():
        if count < 1:
            raise ValueError(f"mixture source '{name}' gets none of the {size} draws of a pass: raise weight or size")
    return draws
