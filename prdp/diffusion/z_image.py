"""Z-Image and Z-Image-Turbo from a folder in diffusers format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from prdp.config import ModelConfig
from prdp.diffusion.conditions import Conditions
from prdp.diffusion.flow_policy import FlowPolicy, Patches, text_tokens
from prdp.diffusion.guidance import guided
from prdp.diffusion.pipeline_formats import Z_IMAGE
from prdp.support.errors import StartError

_PATCH = 2
_TEXT_BLOCK = 32
"""The text is filled up to a multiple of these tokens; its first position, and that of the picture, are one more."""
_OWN_PIXELS = 1024
"""Along a side of the pictures that diffusers' pipeline draws unless told another size."""


class ZImagePolicy(FlowPolicy):
    """Qwen3 as the text encoder, a transformer that learns, and a VAE; see `FlowPolicy`.

    The transformer takes lists of latents and of text states, as many rows as a prompt has tokens. It is told the share
    of data, 1 - sigma, and gives data - noise, the opposite of a flow's velocity.

    References:
        `ZImagePipeline` of diffusers, whose guidance_scale is one less than that of `output`.
    """

    FORMAT = Z_IMAGE
    FROZEN = ("vae", "text_encoder")
    GRID = "linspace"

    @staticmethod
    def _patches(transformer: Mapping[str, Any], factor: int) -> Patches:
        return Patches(_PATCH, _OWN_PIXELS, min(transformer["axes_lens"][1:]))

    @classmethod
    def check(cls, model: ModelConfig) -> None:
        """See `FolderPolicy.check`; a text may have as many tokens as there are positions on the first axis."""
        super().check(model)
        length = text_tokens(model, cls.FORMAT)
        most = (cls._network_config(cls._folder(model))["axes_lens"][0] - 2) // _TEXT_BLOCK * _TEXT_BLOCK
        if length > most:
            told = "null" if model.max_sequence_length is None else length
            raise StartError(
                f"model.max_sequence_length={told}: {length} tokens are more than the transformer has positions for; "
                f"at most {most}"
            )

    def _guidance_arguments(self, scale: float) -> Mapping[str, Any]:
        return {"guidance_scale": scale - 1.0 if guided(scale) else 0.0}

    @staticmethod
    def _condition_shapes(
        network: Mapping[str, Any], clip_tokens: int, model: ModelConfig
    ) -> dict[str, tuple[int, ...]]:
        return {"states": (text_tokens(model, Z_IMAGE), network["cap_feat_dim"]), "tokens": ()}

    def _encode(self, prompts: Sequence[str]) -> Mapping[str, torch.Tensor]:
        """`states` [B, max_sequence_length, cap_feat_dim], float32, and `tokens` [B], how many of these rows are used.

        Of the pipeline's own `encode_prompt`: the states before Qwen3's last layer for the prompt in its chat template.
        """
        found, _ = self.pipeline.encode_prompt(
            list(prompts),
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self._text_tokens,
        )
        states = torch.zeros(len(found), self._text_tokens, found[0].shape[1], device=self.device)
        for row, one in zip(states, found, strict=True):
            row[: len(one)] = one.float()
        return {"states": states, "tokens": torch.tensor([len(one) for one in found], device=self.device)}

    def _predict(
        self, network: torch.nn.Module, latents: torch.Tensor, times: torch.Tensor, conditions: Conditions
    ) -> torch.Tensor:
        fields = conditions.fields
        texts = [row[:used] for row, used in zip(fields["states"], fields["tokens"].tolist(), strict=True)]
        frames = latents.to(self._input_dtype(network, latents)).unsqueeze(2)
        output: list[torch.Tensor] = network(list(frames.unbind()), 1.0 - times, texts, return_dict=False)[0]
        return -torch.stack(output).squeeze(2)
