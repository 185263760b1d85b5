"""CLIP checkpoints of open_clip and openai/CLIP, which share their names, as configuration and weights of CLIPModel."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_HEAD_WIDTH = 64
_HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104}
"""Vision towers whose attention heads are not 64 wide: ViT-H, g and bigG."""

_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_WHOLE = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
_TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
_TELLING = (
    "visual.conv1.weight",
    "visual.positional_embedding",
    "visual.transformer.resblocks.0.mlp.c_fc.weight",
    "token_embedding.weight",
    "positional_embedding",
    "transformer.resblocks.0.mlp.c_fc.weight",
    "text_projection",
)
_RESBLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)\.(weight|bias)")
_PACKED = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)")


def is_open_clip(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether the tensors that tell the architecture are all there."""
    return all(name in tensors for name in _TELLING)


def clip_configuration(tensors: Mapping[str, torch.Tensor], activation: str = "gelu") -> dict[str, Any]:
    """Arguments of transformers' CLIPConfig, read off the shapes.

    Args:
        tensors: an open_clip state dict; the meta device will do.
        activation: 'gelu', or 'quick_gelu' for weights that OpenAI trained; the file does not say which.
    """
    vision_width = tensors["visual.conv1.weight"].shape[0]
    patch = tensors["visual.conv1.weight"].shape[-1]
    grid = round((tensors["visual.positional_embedding"].shape[0] - 1) ** 0.5)
    vocabulary, text_width = tensors["token_embedding.weight"].shape
    return {
        "projection_dim": tensors["text_projection"].shape[1],
        "text_config": {
            "hidden_size": text_width,
            "intermediate_size": tensors["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
            "num_hidden_layers": _layers(tensors, "transformer.resblocks."),
            "num_attention_heads": max(1, text_width // _HEAD_WIDTH),
            "max_position_embeddings": tensors["positional_embedding"].shape[0],
            "vocab_size": vocabulary,
            "hidden_act": activation,
            # To CLIPModel 2 means: pool at the largest token, which is where open_clip pools.
            "eos_token_id": 2,
            "bos_token_id": vocabulary - 2,
        },
        "vision_config": {
            "hidden_size": vision_width,
            "intermediate_size": tensors["visual.transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
            "num_hidden_layers": _layers(tensors, "visual.transformer.resblocks."),
            "num_attention_heads": max(1, vision_width // _HEAD_WIDTHS.get(vision_width, _HEAD_WIDTH)),
            "image_size": grid * patch,
            "patch_size": patch,
            "hidden_act": activation,
        },
    }


def clip_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same weights under CLIPModel's names; names that are unknown are kept, for the binding to complain of."""
    renamed: dict[str, torch.Tensor] = {}
    for name, value in tensors.items():
        if packed := _PACKED.fullmatch(name):
            visual, layer, kind = packed.groups()
            for part, piece in zip("qkv", value.chunk(3), strict=True):
                renamed[f"{_tower(visual)}.encoder.layers.{layer}.self_attn.{part}_proj.{kind}"] = piece.contiguous()
        elif (block := _RESBLOCK.fullmatch(name)) and block[3] in _BLOCK:
            visual, layer, part, kind = block.groups()
            renamed[f"{_tower(visual)}.encoder.layers.{layer}.{_BLOCK[part]}.{kind}"] = value
        elif name in _TRANSPOSED:
            renamed[_TRANSPOSED[name]] = value.T.contiguous()
        else:
            renamed[_WHOLE.get(name, name)] = value
    return renamed


def _tower(visual: str | None) -> str:
    return "vision_model" if visual else "text_model"


def _layers(tensors: Mapping[str, torch.Tensor], prefix: str) -> int:
    return 1 + max(int(name[len(prefix) :].split(".")[0]) for name in tensors if name.startswith(prefix))
