"""The schema of `prdp gate`: every key, its type, its bound, its default and its meaning, in this place alone.

conf/gate.yaml uses these keys.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Any

from prdp.config import MISSING, HalfPrecision, ModelConfig
from prdp.configuration.bounds import adapter_problems, broken_rules
from prdp.diffusion.precision import precision_problem
from prdp.experts.gate_files import SHARES
from prdp.support.errors import ConfigError
from prdp.support.rules import Count, CountOrZero, NotNegative, Positive, Rule, Text, one_of

_MODELS = Rule(lambda value: bool(value) and all(value), "a list of models")
_FOLDERS = Rule(
    lambda value: bool(value) and all(isinstance(one, str) and one.strip() for one in _listed(value)),
    "a folder, or a list of folders",
)
_ASPECTS = Rule(
    lambda value: all(re.fullmatch(r"[\w-]+(\.[\w. -]+)?", one) for one in value) and len(set(value)) == len(value),
    "different names of rewards that scored the sets, or reward.sub_score",
)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


@dataclass
class GateRollouts:
    """The images that gates learn from."""

    path: Annotated[Any, _FOLDERS] = MISSING
    """Folder of a set that prdp generate has made, or a list of folders."""

    @property
    def folders(self) -> tuple[str, ...]:
        """Those of `path`."""
        return tuple(_listed(self.path))


@dataclass
class GateLearning:
    """The gates, and how they learn."""

    share: Annotated[str, one_of(*SHARES)] = "layer"
    """layer: a gate for each adapted layer; block: for each block of the network, from the input of its first adapted
    layer."""
    steps: Count = 200
    """Of the optimizer."""
    batch_size: Count = 16
    """Images a step, each noised once."""
    learning_rate: Positive = 1e-2
    """Of AdamW, constant; nothing but the gates learns."""
    balance: NotNegative = 0.01
    """Weight of -sum log q beside the denoising error, where q is how much each expert is used on average."""
    frozen_average: bool = False
    """Also write one LoRA in which each expert has the weight that each layer's gate gave it on average."""


@dataclass
class GateConfig:
    """One run of `prdp gate`."""

    models: Annotated[list[str], _MODELS] = MISSING
    """The experts, at least two: [name:]path of a run, a sweep, a LoRA file, or a folder of diffusers or PEFT with
    one."""
    rollouts: GateRollouts = field(default_factory=GateRollouts)
    aspects: Annotated[list[str], _ASPECTS] = field(default_factory=list)
    """Rewards or sub-scores of the sets, one for each expert, say: the best image of every prompt by each is learned
    from. None takes all images."""
    seed: CountOrZero = 0
    """Of the order of images, of times and of noise."""
    autocast: HalfPrecision | None = None
    """Precision of the network's forward; null for that of its weights."""
    gate: GateLearning = field(default_factory=GateLearning)
    model: ModelConfig = field(default_factory=ModelConfig)
    """The base of the experts; what the first run among them was trained from unless given."""
    checkpoint_every: CountOrZero = 50
    """Steps between two times that learning is written down, beside output_dir: a killed run goes on from there. 0 for
    never."""
    output_dir: Text = MISSING
    """A folder that is not there yet, or is empty."""


def check_gate(config: GateConfig) -> None:
    """Check every value alone and those that must fit together.

    Raises:
        ConfigError: all that is wrong, a line each: the key, its value and what is allowed.
    """
    problems = broken_rules(config)[1] + adapter_problems(config.model)
    mismatch = precision_problem("model.dtype", config.model.dtype, "autocast", config.autocast)
    problems += [] if mismatch is None else [mismatch]
    if problems:
        raise ConfigError("\n".join(problems))
