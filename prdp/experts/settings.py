"""The schema of `prdp merge`: every key, its type, its bound, its default and its meaning, in this place alone.

conf/merge.yaml uses these keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any

from prdp.config import MISSING
from prdp.configuration.bounds import broken_rules
from prdp.experts.methods import method_problems
from prdp.support.errors import ConfigError
from prdp.support.rules import Positive, Rule, Text, one_of

FORMATS = ("diffusers", "kohya", "peft")
_MODELS = Rule(lambda value: bool(value) and all(value), "a list of at least one model")
_WEIGHTS = Rule(
    lambda value: all(math.isfinite(one) and one > 0 for one in value),
    "numbers above 0, one for each model, or none; a model that should not count is left out",
)


@dataclass
class MergeConfig:
    """One run of `prdp merge`."""

    models: Annotated[list[str], _MODELS] = MISSING
    """[name:]path of a run, a sweep, a LoRA file, or a folder of diffusers or PEFT with one."""
    weights: Annotated[list[float], _WEIGHTS] = field(default_factory=list)
    """One for each model, in their order, those of a sweep unfolded; only their ratios count. None is equal weights."""
    scale: Positive = 1.0
    """By which the merged delta is multiplied; the number of models makes a mean of equal weights a sum."""
    merge: dict[str, Any] = field(default_factory=lambda: {"name": "mean_delta"})
    """The method and its knobs."""
    format: Annotated[str, one_of(*FORMATS)] = "diffusers"
    """Of the file that is written."""
    output_dir: Text = MISSING
    """A folder that is not there yet, or is empty."""


def check_merge(config: MergeConfig) -> None:
    """Check every value alone.

    Raises:
        ConfigError: all that is wrong, a line each: the key, its value and what is allowed.
    """
    problems = broken_rules(config)[1] + method_problems(config.merge)
    if problems:
        raise ConfigError("\n".join(problems))
