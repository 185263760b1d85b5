"""What a kind of evidence is: scalars of every image and column, which objectives are functions of.

A kind is one class. What samplers keep for it, its columns, the passes it costs and how its channels are computed stand
there, and nobody else asks which kind it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from prdp.config import SamplerConfig
from prdp.types import Float64, Int64, Rollout

if TYPE_CHECKING:
    import torch

    from prdp.diffusion.conditions import Conditions
    from prdp.diffusion.policy import Policy
    from prdp.diffusion.recording import Recorder
    from prdp.diffusion.transitions import Transitions

Channels = dict[str, Float64]
"""Channel -> evidence of every cell, [n, T]; 0 at cells that were left out."""
Of = Literal["policy", "reference", "old", "sampled"]
"""Whose evidence: of the learning weights, of their frozen start, of the moving old policy, or of the policy that an
epoch's updates start from, which has sampled if the rollout is on-policy."""


@dataclass(frozen=True)
class Pass:
    """A network and all that its evidence follows from.

    Attributes:
        policy, transitions, guidance_scale: that the rollout was sampled with.
        seed: of the run.
        update: number of the optimizer step.
        network: whose evidence it is; None for the policy's own.
        network_of: the network of another, for as long as the context lasts.
        alike: whose network has the weights of this one, so that its output is this one's.
        keep: takes the output, for a later pass over these cells.
        kept: the output of another, guided as the sampler is, that an earlier pass has left; None where none has.
    """

    policy: Policy
    transitions: Transitions
    guidance_scale: float
    seed: int
    update: int
    network: torch.nn.Module | None = None
    network_of: Callable[[Of], AbstractContextManager[torch.nn.Module | None]] | None = None
    alike: Collection[Of] = ()
    keep: Callable[[torch.Tensor], None] | None = None
    kept: Callable[[Of], torch.Tensor | None] | None = None

    def output(self, latents: torch.Tensor, times: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        """The guided output, float32 [b, C, h, w]; see `Policy.output`."""
        output = self.policy.output(latents, times, conditions, self.guidance_scale, self.network)
        if self.keep is not None:
            self.keep(output)
        return output

    def output_of(
        self,
        of: Of,
        latents: torch.Tensor,
        times: torch.Tensor,
        conditions: Conditions,
        guidance_scale: float | None = None,
    ) -> torch.Tensor:
        """The guided output of another network, without gradient. Call it before `output`: tensors are exchanged.

        Args:
            guidance_scale: None for the sampler's.
        """
        import torch

        left = self.kept(of) if self.kept is not None and guidance_scale is None else None
        if left is not None:
            return left
        assert self.network_of is not None, "this pass knows one network"
        scale = self.guidance_scale if guidance_scale is None else guidance_scale
        with torch.no_grad(), self.network_of(of) as network:
            return self.policy.output(latents, times, conditions, scale, network)


@dataclass(frozen=True)
class Evidence(ABC):
    """A kind of evidence. The fields of its dataclass are its knobs, keys of the section `objective`.

    Attributes:
        channels: what a loss may be differentiated by.
        sampled: of them those that a rollout tells of the policy that sampled, see `stored`.
        data: what a loss may ask for besides rewards.
        of_steps: of `data`, what is told of the columns themselves, and not scaled by step weights.
        passes: of `data`, what takes passes over the cells: name -> (channel, whose).
        derived: what a loss may take besides, differences: name -> (channel or data, channel or data to subtract).
        others: channels whose values take the output of another network as well: name -> whose.
        beside: of `passes`, what that output tells, too, where it is guided as the sampler is: name -> whose. Such a
            pass asks for the same output of the same latents, once a microbatch, which may be kept for `others`.
        keeps_steps: whether its columns are steps of the sampler, whose latents are kept.
        needs_noise: whether these have to be steps that draw noise.
        keeps: names in `Rollout.stored` of what it is computed from, which its recorder keeps.
        skips_unused: whether images without a coefficient are left out of all passes.
    """

    channels: ClassVar[tuple[str, ...]]
    sampled: ClassVar[tuple[str, ...]] = ()
    data: ClassVar[tuple[str, ...]] = ()
    of_steps: ClassVar[tuple[str, ...]] = ()
    passes: ClassVar[Mapping[str, tuple[str, Of]]] = {}
    derived: ClassVar[Mapping[str, tuple[str, str]]] = {}
    others: ClassVar[Mapping[str, Of]] = {}
    beside: ClassVar[Mapping[str, Of]] = {}
    keeps_steps: ClassVar[bool] = False
    needs_noise: ClassVar[bool] = False
    keeps: ClassVar[tuple[str, ...]] = ()
    skips_unused: ClassVar[bool] = False

    @property
    def kind(self) -> str:
        """Its name, a value of `objective.evidence`."""
        return type(self).__name__.lower()

    def problems(self, sampler: SamplerConfig, images_per_prompt: int, label: str) -> list[str]:
        """What it asks of a run, where that is not so, a line each: the key, its value and what is expected.

        Args:
            label: of the objective.
        """
        return []

    def guard(self, arrays: Collection[str]) -> str | None:
        """The channel whose recomputed value must be the stored one on an on-policy rollout; None for no such."""
        return None

    @abstractmethod
    def recorder(self, arrays: Collection[str]) -> Recorder:
        """What samplers keep for a loss that asks for these arrays."""

    @abstractmethod
    def columns(self, sampler: SamplerConfig, noisy: Int64) -> int:
        """T of the evidence.

        Args:
            noisy: int64 [S], the steps that can draw noise, see `Transitions.noisy`.

        Raises:
            ValueError: settings of the sampler that leave none; names the key.
        """

    def reference_passes(self, sampler: SamplerConfig, noisy: Int64, arrays: Collection[str]) -> int:
        """Network passes of the reference while an image is sampled."""
        return 0

    @abstractmethod
    def stored_latents(self, sampler: SamplerConfig, noisy: Int64, arrays: Collection[str]) -> dict[str, float]:
        """What is kept of an image, in latents of float32, by what it is; what else is kept is small."""

    @abstractmethod
    def shape(self, rollout: Rollout) -> tuple[int, int]:
        """Images and columns of a rollout's evidence: all of its images, and what `columns` says."""

    def check(self, rollout: Rollout) -> None:
        """Raise ValueError if the rollout does not hold what this evidence is computed from."""
        missing = [name for name in self.keeps if name not in rollout.stored]
        if not missing:
            return
        if not rollout.stored:
            name = missing[0].replace("_", " ")
            raise ValueError(f"the rollout has no {name}: sample it for this objective, with trajectory=True")
        raise ValueError(
            f"the rollout has no '{missing[0]}', which {type(self).__name__}.keeps names; its recorder kept "
            f"{', '.join(rollout.stored)}"
        )

    def known(self, rollout: Rollout, transitions: Transitions) -> Channels:
        """Those of `data` that the rollout tells of without a pass, [n, T] each."""
        return {}

    def stored(self, rollout: Rollout) -> Channels:
        """Channels of the policy that sampled, which are those of the learner on an on-policy rollout."""
        return {}

    def guidance_of(self, of: Of) -> float | None:
        """The guidance scale of an output that `others` names; None for the sampler's."""
        return None

    def found_beside(self, channels: Collection[str]) -> tuple[str, ...]:
        """Those of `passes` that take no pass of their own where these channels are computed, see `beside`."""
        asked = {of for name, of in self.others.items() if name in channels and self.guidance_of(of) is None}
        return tuple(name for name, of in self.beside.items() if of in asked)

    def weights(self, rollout: Rollout, transitions: Transitions) -> Float64 | None:
        """[n, T], what the evidence of each cell is multiplied by before the objective sees it; None for all ones."""
        return None

    @abstractmethod
    def values(
        self,
        of: Pass,
        rollout: Rollout,
        conditions: Conditions,
        images: Int64,
        columns: Int64,
        names: Collection[str],
    ) -> dict[str, torch.Tensor]:
        """Channels at cells (image, column), name -> [b], differentiable by the network's tensors.

        A cell's value must not depend on the other cells. A learner of several processes gives each a part of the
        rollout: whole groups, without images and rewards.

        Args:
            conditions: b rows.
            images, columns: int64 [b].
            names: the channels asked for; and of `beside`, what follows from the same outputs, without gradient.
        """

    def describe(self, now: Channels, known: Mapping[str, np.ndarray], cells: Int64) -> dict[str, float]:
        """Metrics of the policy.

        Args:
            now: the channels.
            known: what `known` and `passes` came to.
            cells: flat, of those that were computed.
        """
        return {}

    def place(self, rollout: Rollout, transitions: Transitions, image: int, column: int) -> str:
        """Where a cell lies, for messages."""
        return f"image {image}, column {column}"
