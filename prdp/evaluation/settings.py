"""The schema of an evaluation: every key, its type, its bound, its default and its meaning, in this place alone.

conf/evaluate.yaml uses these keys.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

from prdp.config import MISSING, ClusterConfig, HalfPrecision, ModelConfig, SamplerConfig
from prdp.configuration.bounds import adapter_problems, broken_rules
from prdp.configuration.sampler_bounds import log_prob_problems, noise_problems
from prdp.diffusion.precision import precision_problem
from prdp.evaluation.exports import TOOLS
from prdp.support.errors import ConfigError
from prdp.support.rules import AnyText, Count, CountOrZero, Rule, Text, between, one_of

_MODELS = Rule(lambda value: bool(value) and all(value), "a list of at least one model")
_SEEDS = Rule(
    lambda value: bool(value) and min(value) >= 0 and len(set(value)) == len(value),
    "a list of different numbers from 0",
)
_CONFIDENCE = Rule(lambda value: 0 < value < 1, "above 0 and below 1")


class Drawing(Protocol):
    """What the commands that draw images have in common; their schemas document each key."""

    @property
    def images_per_prompt(self) -> int: ...

    @property
    def seeds(self) -> list[int]: ...

    @property
    def autocast(self) -> str | None: ...

    @property
    def kl(self) -> bool: ...

    @property
    def output_dir(self) -> str: ...

    @property
    def model(self) -> ModelConfig: ...

    @property
    def sampler(self) -> SamplerConfig: ...

    @property
    def samplers(self) -> dict[str, Any]: ...

    @property
    def cluster(self) -> ClusterConfig: ...


@dataclass
class EvaluateConfig:
    """One run of `prdp evaluate`."""

    suite: AnyText | None = None
    """A benchmark, an option of conf/suite: its prompts, rewards, and how many images; what is typed beside it wins."""
    models: Annotated[list[str], _MODELS] = MISSING
    """'base', or [name:]path of a run, a sweep, a checkpoint, exported weights, a diffusers folder, a LoRA file."""
    against: AnyText | None = "base"
    """Name of the model that the others are compared with; null compares none."""
    prompts: dict[str, Any] = field(default_factory=dict)
    """Prompt set name -> section with `_target_`."""
    rewards: dict[str, Any] = field(default_factory=dict)
    """Reward name -> section with `_target_`: what the models were optimised for."""
    watch: dict[str, Any] = field(default_factory=dict)
    """Likewise, of rewards that nobody optimised."""
    prompts_per_set: Count = 256
    """Prompts taken of each set, the same ones every time; sets with fewer are taken whole."""
    images_per_prompt: Count = 4
    """Of each prompt and seed; diversity needs at least 2 images of a prompt."""
    seeds: Annotated[list[int], _SEEDS] = field(default_factory=lambda: [0])
    """Noise seeds; models whose latents have one shape get the same noise."""
    prompt_seed: CountOrZero = 1234
    """Which prompts of a larger set are taken."""
    autocast: HalfPrecision | None = None
    """Precision of the network's forward under autocast; null for none."""
    kl: bool = False
    """Also measure logratio_ref of LoRA files and checkpoints against their base: one more network pass a step."""
    category_mean: bool = False
    """Also tell the mean of the categories' means, as GenEval and HPSv2 publish it."""
    collapse_below: Annotated[float, between(0, 1)] = 0.5
    """The alarm goes off where a model's diversity is below this part of the base's."""
    confidence: Annotated[float, _CONFIDENCE] = 0.95
    """Of the intervals."""
    grid_prompts: CountOrZero = 12
    """Prompts in the report's grid."""
    extremes: CountOrZero = 4
    """Prompts with the largest gains, and as many with the largest losses, in the report."""
    export: list[Annotated[str, one_of(*TOOLS)]] = field(default_factory=list)
    """Benchmarks whose own scripts are given folders."""
    output_dir: Text = MISSING
    """The evaluation's folder: the same one again goes on, or adds what is missing."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The model called 'base', which LoRA files are applied to; dtype and device hold for every model, and so do height
    and width where the command line gives them."""
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    """How every model draws that has no sampler of its own; what the first run says unless given. Models distilled to
    few steps have: students of prdp distill, runs that fine-tuned one, folders with an LCMScheduler."""
    samplers: dict[str, Any] = field(default_factory=dict)
    """Model name -> keys of `sampler` with other values for this model: samplers.student.steps=2."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    features: dict[str, Any] = field(default_factory=lambda: {"_target_": "prdp.evaluation.features.Pixels"})
    """`_target_` and its arguments: where diversity and drift are measured."""


_NAME = re.compile(r"\w[\w-]*")
IMAGE_COLUMNS = ("model", "prompts", "seed", "prompt_index", "image", "prompt", "category", "file")
"""Columns of images.csv besides those of the rewards."""


def check_evaluation(config: EvaluateConfig) -> None:
    """Check every value alone and those that must fit together.

    Raises:
        ConfigError: all that is wrong, a line each: the key, its value and what is allowed.
    """
    wrong, problems = broken_rules(config)
    if not wrong.keys() & {"sampler.kind", "sampler.eta"}:
        problems += noise_problems(config.sampler)
        problems += [f"{one}, or kl=false" for one in log_prob_problems(config.sampler, "kl=true")] if config.kl else []
    problems += drawing_problems(config)
    if config.kl and (config.autocast or config.model.dtype) != "float32":
        problems.append(
            "kl=true: log-ratios are those of pictures drawn in float32, and the models are to be compared in one "
            f"precision: set autocast=null model.dtype=float32 (given autocast={config.autocast} "
            f"model.dtype={config.model.dtype}), or kl=false"
        )
    for key in ("prompts", "rewards", "watch"):
        problems += name_problems(key, getattr(config, key))
        for name in getattr(config, key):
            if key != "prompts" and name in IMAGE_COLUMNS:
                own = ", ".join(IMAGE_COLUMNS)
                problems.append(f"{key}.{name}: images.csv has a column of that name already; its own are {own}")
    for key, section in (("prompts", config.prompts), ("rewards", {**config.rewards, **config.watch})):
        if not section:
            problems.append(f"no {key}: give {key}=[...], or a run folder among models, whose {key} are then taken")
    for name in config.rewards.keys() & config.watch.keys():
        problems.append(f"watch: '{name}' is among rewards already; a reward is either optimised or watched")
    if problems:
        raise ConfigError("\n".join(problems))


def drawing_problems(config: Drawing) -> list[str]:
    """Adapters and precisions that do not fit together, a line each."""
    mismatch = precision_problem("model.dtype", config.model.dtype, "autocast", config.autocast)
    return adapter_problems(config.model) + ([] if mismatch is None else [mismatch])


def name_problems(key: str, names: Iterable[str]) -> list[str]:
    """Names of prompt sets or rewards that cannot be names of files."""
    return [
        f"{key}.{name}: a name may hold letters, digits, _ and -" for name in names if not _NAME.fullmatch(str(name))
    ]
