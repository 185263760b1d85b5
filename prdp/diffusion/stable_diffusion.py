"""Stable Diffusion 1.x and 2.x from a folder in diffusers format: the policy whose network learns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from prdp.config import LearnerConfig, ModelConfig
from prdp.diffusion.conditions import Conditions
from prdp.diffusion.control import FIELD, Control
from prdp.diffusion.folder_policy import vae_config
from prdp.diffusion.image_size import KEYS, check_side, vae_factor
from prdp.diffusion.pipeline_formats import STABLE_DIFFUSION
from prdp.diffusion.unet_policy import PIPELINE_UNIT, UNetPolicy, text_length, text_width
from prdp.support.errors import StartError


class StableDiffusionPolicy(UNetPolicy):
    """One CLIP text encoder, a UNet that learns, and a VAE; see `UNetPolicy`."""

    FORMAT = STABLE_DIFFUSION
    FROZEN = ("vae", "text_encoder")
    ADAPTED_ENCODERS = ("text_encoder",)
    FRAMEWORKS = ("torch", "jax")
    control: Control | None = None
    """Reads the pictures of `Conditions`, where they have any."""

    @classmethod
    def learner_problems(cls, model: ModelConfig, learner: LearnerConfig) -> list[str]:
        """Layers that take no adapter, and networks that the JAX twin does not compute."""
        from prdp.diffusion.pipeline_checks import empty_network

        problems = super().learner_problems(model, learner)
        if learner.framework != "jax":
            return problems
        from prdp.diffusion.jax_unet import UNet

        folder = cls._folder(model)
        network: Any = empty_network(folder, cls.FORMAT)
        try:
            UNet(dict(network.config))
        except ValueError as error:
            problems.append(f"learner.framework=jax: model.path={model.path}: {error}")
        unet = cls._network_config(folder)
        return problems + _jax_size_problems(unet, vae_config(folder), model, cls.latent_shape_of(model)[1:])

    @staticmethod
    def _condition_shapes(
        network: Mapping[str, Any], clip_tokens: int, model: ModelConfig
    ) -> dict[str, tuple[int, ...]]:
        embedded = network["time_cond_proj_dim"]
        guidance = {} if embedded is None else {"guidance": (embedded,)}
        return {"states": (clip_tokens, text_width(network)), **guidance}

    def _tokenised(self, prompts: Sequence[str]) -> Mapping[str, torch.Tensor]:
        """`token_ids` [B, tokens], cut at the text encoder's length, and `mask` alike where the encoder takes one."""
        tokenizer, text_encoder = self.pipeline.tokenizer, self.pipeline.text_encoder
        tokens = self._tokens(tokenizer, prompts, text_length(tokenizer, text_encoder))
        masked = getattr(text_encoder.config, "use_attention_mask", False)
        return {"token_ids": tokens.input_ids, **({"mask": tokens.attention_mask} if masked else {})}

    def _read(self, tokens: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """`states` [B, tokens, width]."""
        mask = tokens.get("mask")
        return {"states": self.pipeline.text_encoder(tokens["token_ids"], attention_mask=mask).last_hidden_state}

    def _predict(
        self, network: torch.nn.Module, latents: torch.Tensor, times: torch.Tensor, conditions: Conditions
    ) -> torch.Tensor:
        fields = conditions.fields
        embedded: dict[str, Any] = {}  # which the JAX twin lacks
        if "guidance" in fields:
            embedded["timestep_cond"] = fields["guidance"]
        if FIELD in fields and self.control is not None:
            embedded |= self.control.residuals(latents, times.long(), fields["states"], fields[FIELD])
        output: torch.Tensor = network(
            latents, times.long(), encoder_hidden_states=fields["states"], return_dict=False, **embedded
        )[0]
        return output


def _jax_size_problems(
    unet: Mapping[str, Any], vae: Mapping[str, Any], model: ModelConfig, sides: Sequence[int]
) -> list[str]:
    """Sides of latents that cannot be halved at every level: the JAX twin does not round."""
    halves = 2 ** (len(unet["block_out_channels"]) - 1)
    unit, problems = math.lcm(halves * vae_factor(vae), PIPELINE_UNIT), []
    for key, given, side in zip(KEYS, (model.height, model.width), sides, strict=True):
        if not side % halves:
            continue
        if given is None:
            problems.append(
                f"learner.framework=jax: model.path={model.path}: unet sample_size={unet['sample_size']}: must divide "
                f"by {halves}"
            )
            continue
        try:
            check_side(key, given, unit)
        except StartError as error:
            problems.append(f"learner.framework=jax: {error}")
    return list(dict.fromkeys(problems))
