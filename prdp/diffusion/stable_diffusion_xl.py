"""Stable Diffusion XL from a folder in diffusers format: two text encoders, and the size as a condition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from prdp.config import ModelConfig
from prdp.diffusion.conditions import Conditions
from prdp.diffusion.determinism import tf32_products
from prdp.diffusion.pipeline_formats import STABLE_DIFFUSION_XL
from prdp.diffusion.precision import upcast
from prdp.diffusion.text_adapters import GAIN
from prdp.diffusion.unet_policy import UNetPolicy, text_length, text_width
from prdp.types import UInt8

_SIZES = 6
"""Numbers of `time_ids`."""


class StableDiffusionXLPolicy(UNetPolicy):
    """Two CLIP text encoders, a UNet that learns and takes pooled text and sizes too, and a VAE; see `UNetPolicy`.

    References:
        Podell et al., SDXL (2023), section 2.2 on the conditions of sizes; `StableDiffusionXLPipeline` of diffusers.
    """

    FORMAT = STABLE_DIFFUSION_XL
    FROZEN = ("vae", "text_encoder", "text_encoder_2")
    ADAPTED_ENCODERS = ("text_encoder", "text_encoder_2")
    READ_BEFORE_LAST = ("text_encoder",)

    @staticmethod
    def _condition_shapes(
        network: Mapping[str, Any], clip_tokens: int, model: ModelConfig
    ) -> dict[str, tuple[int, ...]]:
        embedded = network["time_cond_proj_dim"]
        guidance = {} if embedded is None else {"guidance": (embedded,)}
        pooled = network["projection_class_embeddings_input_dim"] - _SIZES * network["addition_time_embed_dim"]
        states = (clip_tokens, text_width(network))
        return {"states": states, "pooled": (pooled,), "time_ids": (_SIZES,), **guidance}

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> UInt8:
        """See `DiffusersPolicy.decode`; in float32 where the VAE's force_upcast says so, as it overflows in float16.

        A VAE that is stored in half precision is decoded with by TF32 products then: pixels have 8 bits.

        Raises:
            RuntimeError: the VAE was left out.
        """
        self._needs("vae")
        vae = self.pipeline.vae
        with ExitStack() as held:
            if vae.config.force_upcast and vae.dtype != torch.float32:
                held.enter_context(tf32_products(True))
                held.enter_context(upcast(vae))
            return super().decode(latents)

    def _tokenised(self, prompts: Sequence[str]) -> Mapping[str, torch.Tensor]:
        """`token_ids` and `token_ids_2` [B, tokens], and `time_ids` [B, 6], float32.

        The latter are original height and width, top and left of the crop, target height and width. As by default in
        diffusers, a picture was never larger than it is drawn, and never cropped.
        """
        pipeline = self.pipeline
        pairs = (pipeline.tokenizer, pipeline.text_encoder), (pipeline.tokenizer_2, pipeline.text_encoder_2)
        length = min(text_length(*pair) for pair in pairs)
        first, second = (self._tokens(tokenizer, prompts, length).input_ids for tokenizer, _ in pairs)
        height, width = self.picture_size
        sizes = torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32, device=self.device)
        return {"token_ids": first, "token_ids_2": second, "time_ids": sizes.repeat(len(prompts), 1)}

    def _read(self, tokens: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """`states` [B, tokens, width], before the last layer of both encoders side by side, and `pooled`
        [B, projection], of the second.
        """
        first = self.pipeline.text_encoder(tokens["token_ids"], output_hidden_states=True)
        second = self.pipeline.text_encoder_2(tokens["token_ids_2"], output_hidden_states=True)
        states = torch.cat([one.hidden_states[-2] for one in (first, second)], -1)
        return {"states": states, "pooled": second.text_embeds}

    def _without_prompt(self, fields: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        if not self.pipeline.config.force_zeros_for_empty_prompt:
            return fields
        names = (GAIN,) if GAIN in fields else ("states", "pooled")
        return {**fields, **{name: torch.zeros_like(fields[name]) for name in names}}

    def _for_vae(self, latents: torch.Tensor) -> torch.Tensor:
        config = self.pipeline.vae.config
        if config.latents_mean is None:
            return super()._for_vae(latents)
        mean, std = (_of_channels(values, latents) for values in (config.latents_mean, config.latents_std))
        return latents * std / config.scaling_factor + mean

    def _from_vae(self, latents: torch.Tensor) -> torch.Tensor:
        config = self.pipeline.vae.config
        if config.latents_mean is None:
            return super()._from_vae(latents)
        mean, std = (_of_channels(values, latents) for values in (config.latents_mean, config.latents_std))
        return (latents - mean) * config.scaling_factor / std

    def _predict(
        self, network: torch.nn.Module, latents: torch.Tensor, times: torch.Tensor, conditions: Conditions
    ) -> torch.Tensor:
        fields = conditions.fields
        output: torch.Tensor = network(
            latents,
            times.long(),
            encoder_hidden_states=fields["states"],
            timestep_cond=fields.get("guidance"),
            added_cond_kwargs={"text_embeds": fields["pooled"], "time_ids": fields["time_ids"]},
            return_dict=False,
        )[0]
        return output


def _of_channels(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    """A number for each channel of latents [B, C, h, w]."""
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, -1, 1, 1)
