"""The schema of `prdp calibrate`: every key, its type, its bound, its default and its meaning, in this place alone.

conf/calibrate.yaml uses these keys.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from prdp.collaboration.cascade import Strategy, strategy_problems
from prdp.config import MISSING, ClusterConfig, HalfPrecision, ModelConfig, SamplerConfig
from prdp.configuration.bounds import adapter_problems, broken_rules
from prdp.configuration.sampler_bounds import noise_problems
from prdp.diffusion.precision import precision_problem
from prdp.support.errors import ConfigError
from prdp.support.rules import Count, CountOrZero, Rule, Text, between

_MODELS = Rule(lambda value: len(value) == 2 and all(value), "a list of two models: the student, then the teacher")
_RATE = between(0, 1)


@dataclass
class CalibrateConfig:
    """One run of `prdp calibrate`."""

    models: Annotated[list[str], _MODELS] = MISSING
    """The student and the teacher, as prdp evaluate takes models."""
    prompts: dict[str, Any] = field(default_factory=dict)
    """Prompt set name -> section with `_target_`: of other prompts than those that the cascade is judged on."""
    rewards: dict[str, Any] = field(default_factory=dict)
    """The estimator, one reward: name -> section with `_target_`."""
    rate: Annotated[float, _RATE] = 0.25
    """Share of the student's images that are to be drawn once more."""
    strategy: Strategy = field(default_factory=Strategy)
    """What becomes of these."""
    prompts_per_set: Count | None = 1000
    """Prompts taken of each set; the share on other prompts differs from `rate` by sqrt(rate (1 - rate) / prompts)."""
    seed: CountOrZero = 0
    """Of the noise."""
    prompt_seed: CountOrZero = 1234
    """Which prompts of a larger set are taken."""
    autocast: HalfPrecision | None = None
    """Precision of the network's forward under autocast; null for none."""
    output_dir: Text = MISSING
    """The cascade's folder: the same one again goes on, or makes another threshold of the same images."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The model called 'base'."""
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    """How the teacher draws; of refine, `steps` are those that it takes from the student's image on."""
    samplers: dict[str, Any] = field(default_factory=dict)
    """Model name -> keys of `sampler` with other values, such as samplers.student.steps=2."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    @property
    def images_per_prompt(self) -> int:
        """One: scores are to be independent."""
        return 1

    @property
    def seeds(self) -> list[int]:
        """As an evaluation has them."""
        return [self.seed]

    @property
    def kl(self) -> bool:
        """No trajectories are measured."""
        return False


def check_calibrate(config: CalibrateConfig) -> None:
    """Check every value alone and those that must fit together.

    Raises:
        ConfigError: all that is wrong, a line each: the key, its value and what is allowed.
    """
    wrong, problems = broken_rules(config)
    if not wrong.keys() & {"sampler.kind", "sampler.eta"}:
        problems += noise_problems(config.sampler)
    problems += adapter_problems(config.model) + strategy_problems(config.strategy)
    mismatch = precision_problem("model.dtype", config.model.dtype, "autocast", config.autocast)
    problems += [] if mismatch is None else [mismatch]
    if not config.prompts:
        problems.append("no prompts: give prompts=[...], options of conf/prompts such as shapes.train, or files")
    if len(config.rewards) != 1:
        told = ", ".join(config.rewards) or "none"
        problems.append(f"rewards: must be one, which estimates how good the student's images are (given {told})")
    if problems:
        raise ConfigError("\n".join(problems))
