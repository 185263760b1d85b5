"""Stable Diffusion 3 and 3.5 from a folder in diffusers format; T5 may be absent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from prdp.config import ModelConfig
from prdp.diffusion.conditions import Conditions
from prdp.diffusion.flow_policy import FlowPolicy, Patches, text_tokens
from prdp.diffusion.pipeline_formats import STABLE_DIFFUSION_3
from prdp.diffusion.precision import upcast


class StableDiffusion3Policy(FlowPolicy):
    """Two CLIP text encoders and perhaps T5, a transformer that learns, and a VAE; see `FlowPolicy`.

    References:
        Esser et al., Scaling rectified flow transformers (2024); `StableDiffusion3Pipeline` of diffusers.
    """

    FORMAT = STABLE_DIFFUSION_3
    FROZEN = ("vae", "text_encoder", "text_encoder_2", "text_encoder_3")
    ADAPTED_ENCODERS = ("text_encoder", "text_encoder_2")
    GRID = "scheduler"

    @staticmethod
    def _patches(transformer: Mapping[str, Any], factor: int) -> Patches:
        own = int(transformer["sample_size"]) * factor
        return Patches(int(transformer["patch_size"]), own, int(transformer["pos_embed_max_size"]))

    @staticmethod
    def _condition_shapes(
        network: Mapping[str, Any], clip_tokens: int, model: ModelConfig
    ) -> dict[str, tuple[int, ...]]:
        tokens = clip_tokens + text_tokens(model, STABLE_DIFFUSION_3)
        width, pooled = network["joint_attention_dim"], network["pooled_projection_dim"]
        return {"states": (tokens, width), "pooled": (pooled,)}

    def _encode(self, prompts: Sequence[str]) -> Mapping[str, torch.Tensor]:
        """`states` [B, tokens, joint_attention_dim] and `pooled` [B, pooled_projection_dim], float32.

        Of the pipeline's own `encode_prompt`: the states before the last layer of both CLIP encoders side by side, then
        those of T5 below, cut at `max_sequence_length`.
        """
        clip = (self.pipeline.text_encoder, self.pipeline.text_encoder_2)
        # Half precision would give a prompt other states in another batch, and so another log-ratio.
        with upcast(*clip):
            states, _, pooled, _ = self.pipeline.encode_prompt(
                prompt=list(prompts),
                prompt_2=None,
                prompt_3=None,
                device=self.device,
                do_classifier_free_guidance=False,
                max_sequence_length=self._text_tokens,
            )
        return {"states": states.float(), "pooled": pooled.float()}

    def _tokenised(self, prompts: Sequence[str]) -> Mapping[str, torch.Tensor]:
        """`token_ids` and `token_ids_2` [B, tokens] of CLIP, and `t5` [B, rest, joint_attention_dim] of `_encode`."""
        pipeline = self.pipeline
        ids = [
            tokenizer(
                list(prompts),
                padding="max_length",
                max_length=pipeline.tokenizer_max_length,
                truncation=True,
                return_tensors="pt",
            ).input_ids.to(self.device)
            for tokenizer in (pipeline.tokenizer, pipeline.tokenizer_2)
        ]
        return {"token_ids": ids[0], "token_ids_2": ids[1], "t5": self._encode(prompts)["states"][:, ids[0].shape[1] :]}

    def _read(self, tokens: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """`clip` [B, tokens, width], before the last layer of both encoders side by side, and `pooled` of both."""
        pairs = (self.pipeline.text_encoder, "token_ids"), (self.pipeline.text_encoder_2, "token_ids_2")
        found = [encoder(tokens[name], output_hidden_states=True) for encoder, name in pairs]
        return {
            "clip": torch.cat([one.hidden_states[-2] for one in found], -1),
            "pooled": torch.cat([one.text_embeds for one in found], -1),
        }

    def _assembled(self, fields: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        clip, t5 = fields["clip"], fields["t5"]
        wide = torch.nn.functional.pad(clip, (0, t5.shape[-1] - clip.shape[-1]))
        return {"states": torch.cat([wide, t5], 1), "pooled": fields["pooled"]}

    def _predict(
        self, network: torch.nn.Module, latents: torch.Tensor, times: torch.Tensor, conditions: Conditions
    ) -> torch.Tensor:
        output: torch.Tensor = network(
            hidden_states=latents.to(self._input_dtype(network, latents)),
            timestep=1000.0 * times,
            encoder_hidden_states=conditions.fields["states"],
            pooled_projections=conditions.fields["pooled"],
            return_dict=False,
        )[0]
        return output
