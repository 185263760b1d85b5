"""What the sampler and the learner ask of a model family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch

from prdp.config import LearnerConfig, ModelConfig, SamplerConfig
from prdp.diffusion.conditions import Conditions
from prdp.diffusion.process import Process
from prdp.diffusion.weights import TrainableWeights
from prdp.types import UInt8


class Policy(Protocol):
    """A text-to-image model with one learning network; `StableDiffusionPolicy` documents each member."""

    device: torch.device
    latent_shape: tuple[int, ...]
    scheduler_config: Mapping[str, Any]
    process: Process
    weights: TrainableWeights
    precision: str

    @classmethod
    def load(
        cls,
        model: ModelConfig,
        learner: LearnerConfig,
        *,
        seed: int = 0,
        keep_reference: bool = True,
        only_network: bool = False,
    ) -> Policy:
        """Read the model. A policy with `only_network` need not encode or decode: a learner asks for neither."""
        ...

    @staticmethod
    def check(model: ModelConfig) -> None:
        """Refuse a model that cannot be loaded and computed exactly, by a UserError, before anything is loaded."""
        ...

    @staticmethod
    def learner_problems(model: ModelConfig, learner: LearnerConfig) -> list[str]:
        """Why a model that passes `check` cannot be trained so; a line each that names the key."""
        ...

    @staticmethod
    def process_of(model: ModelConfig) -> Process:
        """The process of a model that is not loaded, for checks at the start."""
        ...

    @staticmethod
    def latent_shape_of(model: ModelConfig) -> tuple[int, ...]:
        """(C, h, w) of a model that is not loaded."""
        ...

    @staticmethod
    def picture_size_of(model: ModelConfig) -> tuple[int, int]:
        """(H, W) of decoded images in pixels, of a model that is not loaded."""
        ...

    @staticmethod
    def branches_of(model: ModelConfig, guidance_scale: float) -> int:
        """Network passes of one `output`; of a family without it, two above a scale of 1."""
        ...

    def encode(self, prompts: Sequence[str], negative_prompt: str | None = None) -> Conditions:
        """A row a prompt; with `empty`, unless the family knows no guidance.

        Args:
            negative_prompt: what `empty` is made of; None for the empty prompt. It is given where the sampler has one.
        """
        ...

    def output(
        self,
        latents: torch.Tensor,
        times: torch.Tensor,
        conditions: Conditions,
        guidance_scale: float,
        network: torch.nn.Module | None = None,
    ) -> torch.Tensor:
        """u + w (c - u) above a scale w of 1 and c up to it, float32 of the latents' shape; of `network`, if given."""
        ...

    def float32(self) -> AbstractContextManager[None]: ...

    def reference(self) -> AbstractContextManager[torch.nn.Module]: ...

    def decode(self, latents: torch.Tensor) -> UInt8: ...

    def encode_images(self, images: UInt8) -> torch.Tensor:
        """Clean latents of pictures; a family without it learns from no pictures but those that it has drawn."""
        ...

    def save(self, folder: Path) -> None: ...

    def usage(self, model: ModelConfig, sampler: SamplerConfig, mode: str, weights: Path, prompt: str) -> str: ...
