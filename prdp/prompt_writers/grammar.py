"""The grammar of the shapes world as a writer: no model, and every prompt can be judged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from prdp.prompt_writers.base import Answer, Request
from prdp.worlds.shapes.grammar import caption


class GrammarWriter:
    """Draws scenes of a skill and writes their captions; the seed of a request decides which."""

    name = "grammar"
    at_once = 1
    needs_scenes = True

    def answers(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        """See `Writer.answers`."""
        for place, request in enumerate(requests):
            assert request.scenes is not None, "the skill has no scenes"
            rng = np.random.default_rng(request.seed)
            scenes = [request.scenes.draw(rng) for _ in range(request.count)]
            lines = [f"{number}. {caption(scene)}" for number, scene in enumerate(scenes, start=request.first)]
            yield place, Answer("\n".join(lines))
