"""The schema of a run: every key, its type, its bound, its default and its meaning, in this place alone.

YAML under `conf/` may only use these keys. What they are checked against, and what `prdp train --help` shows, is read
from this room.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from prdp.config.choices import (
    CLUSTER_KINDS,
    DEVICE,
    DIFFUSION_KINDS,
    DIFFUSION_SPACINGS,
    DIRECT_TRANSPORTS,
    FAMILIES,
    FLOW_KINDS,
    FLOW_SPACINGS,
    FRAMEWORKS,
    MISSING,
    OPTIMIZERS,
    PRECISIONS,
    SPACINGS,
    WANDB_MODES,
    WINDOWS,
    Amounts,
    Finite,
    HalfPrecision,
    Precision,
)
from prdp.config.data import EvaluationConfig, PromptsConfig, RolloutsConfig
from prdp.config.learner import LearnerConfig
from prdp.config.model import ModelConfig, SamplerConfig
from prdp.config.running import CheckpointConfig, ClusterConfig, TrackingConfig
from prdp.support.rules import Count, CountOrZero, Text, one_of

__all__ = [
    "CLUSTER_KINDS",
    "DEVICE",
    "DIFFUSION_KINDS",
    "DIFFUSION_SPACINGS",
    "DIRECT_TRANSPORTS",
    "FAMILIES",
    "FLOW_KINDS",
    "FLOW_SPACINGS",
    "FRAMEWORKS",
    "MISSING",
    "OPTIMIZERS",
    "PRECISIONS",
    "SPACINGS",
    "WANDB_MODES",
    "WINDOWS",
    "Amounts",
    "CheckpointConfig",
    "ClusterConfig",
    "EvaluationConfig",
    "Finite",
    "HalfPrecision",
    "LearnerConfig",
    "ModelConfig",
    "Precision",
    "PromptsConfig",
    "RolloutsConfig",
    "SamplerConfig",
    "TrackingConfig",
    "TrainConfig",
]


@dataclass
class TrainConfig:
    """One run of `prdp train`. N, B and K are global: microbatches, chunks, actors and devices never change results."""

    seed: CountOrZero = 0
    """Prompts, noise and fresh weights all follow from it."""
    epochs: Count = 100
    """E of the paper: rounds of sampling, scoring and learning."""
    prompts_per_epoch: Count = 64
    """N of the paper."""
    images_per_prompt: Count = 8
    """B of the paper; all pairs within a prompt's group are compared."""
    updates_per_epoch: Count = 1
    """K of the paper: gradient updates on the full batch of N * B images."""
    rollout_policy: Annotated[str, one_of("current", "reference")] = "current"
    """Who samples what is learned from: `current`, the policy being trained, or `reference`, its frozen start: offline
    training."""
    output_dir: Text = MISSING
    """The run's folder: give it to name the folder, or to resume in it."""
    model: ModelConfig = field(default_factory=ModelConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    reward: dict[str, Any] = MISSING
    """What is optimised: `_target_` and its arguments."""
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    rollouts: RolloutsConfig = field(default_factory=RolloutsConfig)
    objective: dict[str, Any] = field(default_factory=lambda: {"name": "prdp"})
    """A name of prdp/objectives, and the knobs of that objective and of its evidence, as conf/objective/ lists them."""
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
