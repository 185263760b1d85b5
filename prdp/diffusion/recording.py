"""What a sampler lets others see of its chains, so that they keep what is learned from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from prdp.config import SamplerConfig
from prdp.diffusion.conditions import Conditions
from prdp.diffusion.policy import Policy
from prdp.diffusion.transitions import Transitions
from prdp.types import Int64


@dataclass(frozen=True)
class Chains:
    """Images that a sampler is about to draw, B of them.

    Attributes:
        policy, transitions, config: the sampler's.
        conditions: B rows.
        prompts: int64 [B], position in the epoch of each image's prompt.
        noisy: int64 [B, W], the steps that draw noise.
        seed, epoch: that the rollout is drawn with.
        at_start: whether the policy is its own reference.
    """

    policy: Policy
    transitions: Transitions
    config: SamplerConfig
    conditions: Conditions
    prompts: Int64
    noisy: Int64
    seed: int
    epoch: int
    at_start: bool

    def reference_output(
        self, latents: torch.Tensor, times: torch.Tensor, conditions: Conditions, output: torch.Tensor
    ) -> torch.Tensor:
        """The guided output of the reference, where the policy's is `output`; one network pass, none at the start."""
        if self.at_start:
            return output
        with self.policy.reference() as network:
            return self.policy.output(latents, times, conditions, self.config.guidance_scale, network)


class Recording(Protocol):
    """What is kept of one batch of chains."""

    def step(
        self, step: int, latents: torch.Tensor, times: torch.Tensor, following: torch.Tensor, output: torch.Tensor
    ) -> None:
        """See step number `step`: latents before and after it [B, C, h, w], times [B], the policy's output."""
        ...

    def finish(self, latents: torch.Tensor) -> dict[str, np.ndarray]:
        """See the final latents [B, C, h, w]; name -> array [B, ...] for `Rollout.stored`."""
        ...


class Recorder(Protocol):
    """What samplers keep for a learner; picklable, so that it goes to actors.

    Attributes:
        needs_reference: whether the sampler's policy has to keep its reference.
        needs_float32: whether chains are drawn in float32 whatever the policy's precision, since what is kept tells
            differences below half precision.
    """

    @property
    def needs_reference(self) -> bool: ...

    @property
    def needs_float32(self) -> bool: ...

    def start(self, chains: Chains) -> Recording:
        """Begin with a batch."""
        ...
