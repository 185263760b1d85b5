"""FLUX.1-dev and FLUX.1-schnell from a folder in diffusers format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from prdp.config import ModelConfig
from prdp.diffusion.conditions import Conditions
from prdp.diffusion.flow_policy import FlowPolicy, Patches, text_tokens
from prdp.diffusion.guidance import guided
from prdp.diffusion.pipeline_formats import FLUX
from prdp.diffusion.precision import upcast

_PACK = 2
"""Latents along a side of the square that is packed into one token."""
_OWN_LATENTS = 128
"""Latents along a side of the pictures that diffusers' pipeline draws unless told another size."""


class FluxPolicy(FlowPolicy):
    """A CLIP text encoder, T5, a transformer that learns and may take the guidance as an input, and a VAE.

    Where the transformer takes the guidance as an input, as FLUX.1-dev's does, `guidance_scale` is that input, whatever
    its size, and there is one branch. Elsewhere, as with FLUX.1-schnell, it mixes the branches with and without prompt,
    which diffusers calls true_cfg_scale. See `FlowPolicy`.

    References:
        `FluxPipeline` of diffusers; Black Forest Labs, FLUX.1 (2024).
    """

    FORMAT = FLUX
    FROZEN = ("vae", "text_encoder", "text_encoder_2")
    GRID = "linspace"

    @staticmethod
    def _patches(transformer: Mapping[str, Any], factor: int) -> Patches:
        return Patches(_PACK, _OWN_LATENTS * factor)

    @staticmethod
    def _embeds_guidance(network: Mapping[str, Any]) -> bool:
        """FLUX.1-dev does."""
        return bool(network["guidance_embeds"])

    def _with_guidance(self, conditions: Conditions, guidance_scale: float) -> Conditions:
        """With `guidance` [B], the scale itself."""
        scales = torch.full((len(conditions),), guidance_scale, dtype=torch.float32, device=self.device)
        return replace(conditions, fields={**conditions.fields, "guidance": scales})

    def _guidance_arguments(self, scale: float) -> Mapping[str, Any]:
        if self.embeds_guidance:
            return {"guidance_scale": scale}
        return {"negative_prompt": "", "true_cfg_scale": scale} if guided(scale) else {}

    @staticmethod
    def _condition_shapes(
        network: Mapping[str, Any], clip_tokens: int, model: ModelConfig
    ) -> dict[str, tuple[int, ...]]:
        states = (text_tokens(model, FLUX), network["joint_attention_dim"])
        return {"states": states, "pooled": (network["pooled_projection_dim"],)}

    def _encode(self, prompts: Sequence[str]) -> Mapping[str, torch.Tensor]:
        """`states` [B, tokens, joint_attention_dim] of T5 and `pooled` [B, pooled_projection_dim] of CLIP, float32.

        Of the pipeline's own `encode_prompt`; T5's states are cut and filled up to `max_sequence_length`.
        """
        # Half precision would give a prompt other states in another batch, and so another log-ratio.
        with upcast(self.pipeline.text_encoder):
            states, pooled, _ = self.pipeline.encode_prompt(
                prompt=list(prompts), prompt_2=None, device=self.device, max_sequence_length=self._text_tokens
            )
        return {"states": states.float(), "pooled": pooled.float()}

    def _predict(
        self, network: torch.nn.Module, latents: torch.Tensor, times: torch.Tensor, conditions: Conditions
    ) -> torch.Tensor:
        fields = conditions.fields
        output: torch.Tensor = network(
            hidden_states=packed(latents.to(self._input_dtype(network, latents))),
            timestep=times,
            guidance=fields.get("guidance"),
            pooled_projections=fields["pooled"],
            encoder_hidden_states=fields["states"],
            txt_ids=torch.zeros(fields["states"].shape[1], 3, device=latents.device),
            img_ids=positions(latents),
            return_dict=False,
        )[0]
        return unpacked(output, latents.shape[2:])


def packed(latents: torch.Tensor) -> torch.Tensor:
    """Latents [B, C, h, w] as tokens [B, h/2 w/2, 4 C], row by row; the channels of a token are those of its square."""
    return pixel_unshuffle(latents, _PACK).flatten(2).transpose(1, 2)


def unpacked(tokens: torch.Tensor, sides: Sequence[int]) -> torch.Tensor:
    """The inverse of `packed` for latents of `sides`, h and w."""
    squares = [side // _PACK for side in sides]
    return pixel_shuffle(tokens.transpose(1, 2).unflatten(2, squares), _PACK)


def positions(latents: torch.Tensor) -> torch.Tensor:
    """(0, row, column) of each token of latents [B, C, h, w], float32 [h/2 w/2, 3]; those of text are (0, 0, 0)."""
    rows, columns = (torch.arange(side // _PACK, device=latents.device) for side in latents.shape[2:])
    return torch.cartesian_prod(torch.zeros_like(rows[:1]), rows, columns).float()
