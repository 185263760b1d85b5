"""What policies of the transformer families have in common: latents cut into patches, a rectified flow."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from prdp.config import ModelConfig, SamplerConfig
from prdp.diffusion.flow_usage import flow_usage_text
from prdp.diffusion.folder_policy import FolderPolicy, vae_config
from prdp.diffusion.guidance import guided
from prdp.diffusion.image_size import KEYS, check_side, vae_factor
from prdp.diffusion.pipeline_formats import PipelineFormat
from prdp.diffusion.process import Process
from prdp.diffusion.rectified_flow import RectifiedFlow


@dataclass(frozen=True)
class Patches:
    """How a transformer takes latents.

    Attributes:
        side: latents along a side of a patch.
        own: pixels along a side of the pictures that it draws unless told another size.
        most: patches along the longest side; None for any number.
    """

    side: int
    own: int
    most: int | None = None


class FlowPolicy(FolderPolicy, ABC):
    """A folder with a transformer; a family adds how prompts are encoded and the transformer is called.

    See `FolderPolicy`.
    """

    NETWORK = "transformer"
    GRID: ClassVar[str]
    """Of `flow_sigmas`, as the family's pipeline spaces its steps."""

    @staticmethod
    @abstractmethod
    def _patches(transformer: Mapping[str, Any], factor: int) -> Patches:
        """Of the transformer's configuration and the pixels of a latent."""

    @classmethod
    def process_of(cls, model: ModelConfig) -> Process:
        """Of the folder's scheduler and sizes, which are read without loading weights."""
        from prdp.diffusion.model_folder import read_component

        folder = cls._folder(model)
        _, height, width = cls._latent_shape_in(folder, model)
        side = cls._patches_in(folder).side
        tokens = (height // side) * (width // side)
        return RectifiedFlow(read_component(folder, "scheduler"), grid=cls.GRID, tokens=tokens)

    def usage(self, model: ModelConfig, sampler: SamplerConfig, mode: str, weights: Path, prompt: str) -> str:
        """A program around the pipeline of `FORMAT`."""
        table = self.process.transitions(sampler)
        arguments = dict(self._guidance_arguments(sampler.guidance_scale))
        if sampler.negative_prompt is not None:
            arguments["negative_prompt"] = sampler.negative_prompt
        size, kind = self.picture_size, self.FORMAT
        return flow_usage_text(
            model, sampler, self.scheduler_config, table, size, mode, weights, prompt, kind, arguments
        )

    def _guidance_arguments(self, scale: float) -> Mapping[str, Any]:
        """What the pipeline's call takes for the guidance of `output`."""
        return {"guidance_scale": scale if guided(scale) else 1.0}

    @classmethod
    def _latent_shape_in(cls, folder: Path, model: ModelConfig) -> tuple[int, int, int]:
        return latent_shape(cls._patches_in(folder), vae_config(folder), (model.height, model.width))

    @classmethod
    def _patches_in(cls, folder: Path) -> Patches:
        return cls._patches(cls._network_config(folder), vae_factor(vae_config(folder)))

    @property
    def _text_tokens(self) -> int:
        return text_tokens(self._model, self.FORMAT)

    def _input_dtype(self, network: torch.nn.Module, latents: torch.Tensor) -> torch.dtype:
        """Of latents for the network: float32 under autocast, and its own where nothing is cast."""
        return next(network.parameters()).dtype if self._in_float32 else latents.dtype


def text_tokens(model: ModelConfig, kind: PipelineFormat) -> int:
    """Of a prompt, as `model.max_sequence_length` or the family's pipeline has it."""
    assert kind.text_tokens is not None
    return model.max_sequence_length or kind.text_tokens[0]


def latent_shape(
    patches: Patches, vae: Mapping[str, Any], size: Sequence[int | None]
) -> tuple[int, int, int]:
    """(C, h, w) of the latents of images of `size`, height and width in pixels; None takes the transformer's own.

    Raises:
        StartError: the VAE or the patches cannot take the size, or the transformer has no positions for it; names the
            nearest that fit.
    """
    factor = vae_factor(vae)
    unit, sides = factor * patches.side, []
    for key, value in zip(KEYS, size, strict=True):
        pixels = patches.own if value is None else value
        check_side(key, pixels, unit, None if patches.most is None else patches.most * unit)
        sides.append(pixels // factor)
    return int(vae["latent_channels"]), sides[0], sides[1]
