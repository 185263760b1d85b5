"""What a writer is asked: rules, examples from the pool, and a number to go on at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prdp.prompt_writers.base import Request
from prdp.prompt_writers.scenes import Scenes
from prdp.prompt_writers.settings import EXAMPLES, WriteConfig


def request_for(config: WriteConfig, number: int, pool: Sequence[str], scenes: Scenes | None) -> Request:
    """The request of a number; its examples are drawn from the pool by (seed, number)."""
    rng = np.random.default_rng((config.seed, number))
    examples = [pool[row] for row in rng.choice(len(pool), EXAMPLES, replace=False)]
    first = EXAMPLES + 1
    lines = [
        f"Write {config.per_request} more descriptions of pictures, for a model that draws what it is told.",
        "Rules:",
        *(f"* {rule}" for rule in (*config.rules, *config.skill.rules)),
        f"* Write a numbered list, a description a line, and nothing else. Go on at number {first}.",
        "",
        *(f"{place}. {example}" for place, example in enumerate(examples, start=1)),
        f"{first}.",
    ]
    return Request(number, "\n".join(lines), first, config.per_request, int(rng.integers(2**31)), scenes)
