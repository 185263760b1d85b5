"""The schema of `prdp prompts write`: every key, its type, its bound, its default and its meaning, in this place alone.

conf/write_prompts.yaml uses these keys.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from prdp.config import MISSING
from prdp.configuration.bounds import broken_rules
from prdp.prompt_writers.rouge import words_of
from prdp.prompt_writers.scenes import Scenes
from prdp.support.errors import ConfigError
from prdp.support.rules import Count, CountOrZero, Rule, Share, Text
from prdp.support.targets import TARGET

EXAMPLES = 3
"""Prompts that a request shows."""
FREE_KEYS = (
    "output", "count", "barren", "writer.url", "writer.key_variable", "writer.at_once", "writer.timeout_seconds",
    "writer.retries", "writer.backoff_seconds", "writer.device",
)  # fmt: skip
"""Keys that may change when a list is gone on with: they say how far, how fast and from where it is written."""
_TEXTS = Rule(lambda value: all(one.strip() for one in value), "a list of texts, and none of them empty")
_OUTPUT = Rule(lambda value: value.endswith(".jsonl"), "a file that ends on .jsonl")


@dataclass
class SkillConfig:
    """What prompts are to exercise."""

    name: Text = MISSING
    """As it stands in the metadata of the prompts."""
    rules: Annotated[list[str], _TEXTS] = field(default_factory=list)
    """What the writer is told of the skill, after the rules for all."""
    seeds: Annotated[list[str], _TEXTS] = field(default_factory=list)
    """Prompts that the examples of the first requests are taken from, at least 3. They are not part of the result."""
    similarity: Share = 0.8
    """ROUGE-L above which a prompt is dropped for its similarity to an earlier one; 1 drops exact repeats alone."""
    scenes: dict[str, Any] = field(default_factory=dict)
    """Of a skill of the shapes world, which scenes exercise it: objects, differ, only, split; see
    prdp/prompt_writers/scenes.py."""


@dataclass
class WriteConfig:
    """One run of `prdp prompts write`."""

    skill: SkillConfig = field(default_factory=SkillConfig)
    """What prompts are to exercise."""
    writer: dict[str, Any] = MISSING
    """Who writes: `_target_` and its arguments."""
    rules: Annotated[list[str], _TEXTS] = field(default_factory=list)
    """What the writer is told whatever the skill."""
    count: Count = 1000
    """Prompts to be written; a larger number goes on where a smaller one ended."""
    per_request: Count = 20
    """Prompts asked for at a time."""
    barren: Count = 10
    """Requests in a row that bring no new prompt, after which the command gives up."""
    seed: CountOrZero = 0
    """Of the examples that requests show, and of writers that draw by themselves."""
    output: Annotated[str, _OUTPUT] = MISSING
    """The file of prompts; what was answered is kept in a folder beside it."""


def check_write(config: WriteConfig) -> None:
    """Check every value alone and those that must fit together.

    Raises:
        ConfigError: all that is wrong, a line each: the key, its value and what is allowed.
    """
    wrong, problems = broken_rules(config)
    if "skill.seeds" not in wrong:
        problems += _seed_problems(config.skill)
    try:
        scenes = scenes_of(config.skill)
    except ConfigError as error:
        problems.append(str(error))
    else:
        told = [(seed, scenes.problem(seed, any_split=True)) for seed in config.skill.seeds] if scenes else []
        problems += [f"skill.seeds: {seed!r} is no prompt of the skill: {problem}" for seed, problem in told if problem]
    if not isinstance(config.writer, dict) or TARGET not in config.writer:
        problems.append(f"writer={config.writer!r}: must be the section of a writer, with {TARGET}")
    if problems:
        raise ConfigError("\n".join(problems))


def scenes_of(skill: SkillConfig) -> Scenes | None:
    """The scenes of a skill of the shapes world; None for others.

    Raises:
        ConfigError: by key.
    """
    if not skill.scenes:
        return None
    try:
        return Scenes(**skill.scenes)
    except (TypeError, ValueError) as error:
        lines = str(error).replace("Scenes.__init__() ", "").splitlines()
        raise ConfigError("\n".join(f"skill.scenes: {line}" for line in lines)) from None


def _seed_problems(skill: SkillConfig) -> list[str]:
    if len(skill.seeds) < EXAMPLES:
        return [f"skill.seeds: has {len(skill.seeds)} prompts, must have at least {EXAMPLES}, which a request shows"]
    repeated = [seed for place, seed in enumerate(skill.seeds) if words_of(seed) in map(words_of, skill.seeds[:place])]
    return [f"skill.seeds: {seed!r} stands there twice" for seed in repeated]
