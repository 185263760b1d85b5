"""The schema of `prdp distill`: every key, its type, its bound, its default and its meaning, in this place alone.

conf/distill.yaml uses these keys.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from prdp.config import MISSING, LearnerConfig, ModelConfig
from prdp.configuration.bounds import adapter_problems, broken_rules
from prdp.configuration.learner_bounds import frozen_problems
from prdp.diffusion.precision import precision_problem
from prdp.support.errors import ConfigError
from prdp.support.rules import Count, CountOrZero, Fraction, Positive, Rule, Text, one_of

TARGETS = ("endpoint", "consistency")
_MODEL = Rule(lambda value: len(value) == 1 and all(value), "a list of one model, the teacher")
_FOLDERS = Rule(
    lambda value: bool(_listed(value)) and all(isinstance(one, str) and one.strip() for one in _listed(value)),
    "a folder, or a list of folders",
)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


@dataclass
class StoredChains:
    """What is learned from."""

    path: Annotated[Any, _FOLDERS] = MISSING
    """Folder of a set that prdp generate has made with chains=true, or a list of folders."""

    @property
    def folders(self) -> tuple[str, ...]:
        """Those of `path`."""
        return tuple(_listed(self.path))


@dataclass
class TargetConfig:
    """What the student is to say of the latents on a teacher's chain."""

    name: Annotated[str, one_of(*TARGETS)] = "endpoint"
    """endpoint: where the teacher's chain ends; consistency: what the student's moving average says one step further
    on, and at the last step where the chain ends."""
    huber: Positive = 0.3
    """The loss is quadratic up to this distance in latents, and linear beyond."""
    ema_decay: Fraction = 0.95
    """Of the average that consistency asks."""


@dataclass
class DistillConfig:
    """One run of `prdp distill`."""

    models: Annotated[list[str], _MODEL] = field(default_factory=lambda: ["base"])
    """The teacher that drew the chains, and that the student starts as: 'base', a run, a diffusers folder, a LoRA file,
    as prdp generate takes them."""
    rollouts: StoredChains = field(default_factory=StoredChains)
    steps: Count = 4
    """That the student is to draw with: passes of the network for an image, at most the teacher's steps."""
    target: TargetConfig = field(default_factory=TargetConfig)
    updates: Count = 220
    """Of the optimizer, whose learning rate falls to 0 by a cosine after learner.warmup_updates."""
    batch_size: Count = 64
    """Latents of an update: a random step of as many chains."""
    seed: CountOrZero = 0
    """Of the order of chains, of steps, and of the weights of a LoRA."""
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    """Which weights learn, and how. learner.ema_decay: of the average that is written, 0 for the last weights."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The model called 'base'."""
    checkpoint_every: CountOrZero = 50
    """Updates between two times that learning is written down, beside output_dir: a killed run goes on from there. 0
    for never."""
    output_dir: Text = MISSING
    """A folder that is not there yet, or is empty."""


def check_distill(config: DistillConfig) -> None:
    """Check every value alone and those that must fit together.

    Raises:
        ConfigError: all that is wrong, a line each: the key, its value and what is allowed.
    """
    problems = broken_rules(config)[1] + adapter_problems(config.model)
    mismatch = precision_problem("model.dtype", config.model.dtype, "learner.autocast", config.learner.autocast)
    problems += [] if mismatch is None else [mismatch]
    learner = config.learner
    for key, value, expected in (
        ("framework", learner.framework, "torch"),
        ("optimizer", learner.optimizer, "adamw"),
        ("init_adapter", learner.init_adapter, None),
        ("text_encoders", learner.text_encoders, False),
        ("schedule", learner.schedule, "constant"),  # it has a cosine of its own
        ("decay_updates", learner.decay_updates, None),
    ):
        if value != expected:
            wanted = "null" if expected is None else expected
            problems.append(f"learner.{key}={value}: must be {wanted} for prdp distill")
    problems += frozen_problems(config.model, learner)
    if learner.warmup_updates >= config.updates:
        problems.append(f"learner.warmup_updates={learner.warmup_updates}: must be below updates={config.updates}")
    if problems:
        raise ConfigError("\n".join(problems))
