"""CLIP as open_clip names its tensors, and BLIP as ImageReward does, as plain functions of these tensors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d, gelu, layer_norm, normalize

WIDTH, LAYERS, EMBEDDING, PATCH, GRID, VOCABULARY, CONTEXT = 64, 2, 48, 14, 2, 56, 16
PROMPTS = ["a red cat", "a red cat", "two dogs", "x" * 40]
"""The last is longer than the models' 16 or 35 tokens."""


def open_clip_tensors(seed: int = 0) -> dict[str, Tensor]:
    """A random state dict with open_clip's names; attention heads are 64 wide."""
    make = _Maker(seed)
    make("logit_scale")
    make("token_embedding.weight", VOCABULARY, WIDTH)
    make("positional_embedding", CONTEXT, WIDTH)
    make("text_projection", WIDTH, EMBEDDING)
    make("visual.class_embedding", WIDTH)
    make("visual.positional_embedding", GRID**2 + 1, WIDTH)
    make("visual.proj", WIDTH, EMBEDDING)
    make("visual.conv1.weight", WIDTH, 3, PATCH, PATCH)
    for name in ("visual.ln_pre", "visual.ln_post", "ln_final"):
        make.pair(name, WIDTH)
    for tower in ("", "visual."):
        for layer in range(LAYERS):
            block = f"{tower}transformer.resblocks.{layer}."
            make(f"{block}attn.in_proj_weight", 3 * WIDTH, WIDTH)
            make(f"{block}attn.in_proj_bias", 3 * WIDTH)
            make.pair(f"{block}attn.out_proj", WIDTH, WIDTH)
            make.pair(f"{block}ln_1", WIDTH)
            make.pair(f"{block}ln_2", WIDTH)
            make.pair(f"{block}mlp.c_fc", 2 * WIDTH, WIDTH)
            make.pair(f"{block}mlp.c_proj", WIDTH, 2 * WIDTH)
    return make.tensors


def open_clip_cosines(w: dict[str, Tensor], pixels: Tensor, ids: list[list[int]]) -> Tensor:
    """Cosines [B] of pixels [B, 3, 28, 28] and token ids that end with the largest id."""
    x = conv2d(pixels, w["visual.conv1.weight"], stride=PATCH).flatten(2).transpose(1, 2)
    x = torch.cat([w["visual.class_embedding"].expand(len(x), 1, -1), x], 1) + w["visual.positional_embedding"]
    x = _open_clip_blocks(w, "visual.transformer.resblocks.", _norm(w, "visual.ln_pre", x), None)
    image = _norm(w, "visual.ln_post", x[:, 0]) @ w["visual.proj"]
    rows = []
    for row in ids:
        y = (w["token_embedding.weight"][row] + w["positional_embedding"][: len(row)])[None]
        mask = torch.full((len(row), len(row)), float("-inf")).triu(1)
        y = _norm(w, "ln_final", _open_clip_blocks(w, "transformer.resblocks.", y, mask))
        rows.append(y[0, -1] @ w["text_projection"])
    return (normalize(image, dim=-1) * normalize(torch.stack(rows), dim=-1)).sum(1)


def imagereward_tensors(vocabulary: int, seed: int = 0) -> dict[str, Tensor]:
    """A random state dict with ImageReward's names: towers of width 64, attention heads 64 wide."""
    make = _Maker(seed)
    vision, text = "blip.visual_encoder.", "blip.text_encoder."
    make(f"{vision}cls_token", 1, 1, WIDTH)
    make(f"{vision}pos_embed", 1, GRID**2 + 1, WIDTH)
    make.pair(f"{vision}patch_embed.proj", WIDTH, 3, PATCH, PATCH)
    make.pair(f"{vision}norm", WIDTH)
    for layer in range(LAYERS):
        block = f"{vision}blocks.{layer}."
        make.pair(f"{block}norm1", WIDTH)
        make.pair(f"{block}norm2", WIDTH)
        make.pair(f"{block}attn.qkv", 3 * WIDTH, WIDTH)
        make.pair(f"{block}attn.proj", WIDTH, WIDTH)
        make.pair(f"{block}mlp.fc1", 2 * WIDTH, WIDTH)
        make.pair(f"{block}mlp.fc2", WIDTH, 2 * WIDTH)
    make(f"{text}embeddings.word_embeddings.weight", vocabulary, WIDTH)
    make(f"{text}embeddings.position_embeddings.weight", 40, WIDTH)
    make.pair(f"{text}embeddings.LayerNorm", WIDTH)
    for layer in range(LAYERS):
        block = f"{text}encoder.layer.{layer}."
        for kind in ("attention", "crossattention"):
            for part in ("query", "key", "value"):
                make.pair(f"{block}{kind}.self.{part}", WIDTH, WIDTH)
            make.pair(f"{block}{kind}.output.dense", WIDTH, WIDTH)
            make.pair(f"{block}{kind}.output.LayerNorm", WIDTH)
        make.pair(f"{block}intermediate.dense", 2 * WIDTH, WIDTH)
        make.pair(f"{block}output.dense", WIDTH, 2 * WIDTH)
        make.pair(f"{block}output.LayerNorm", WIDTH)
    widths = (WIDTH, 1024, 128, 64, 16, 1)
    for place, into, out in zip((0, 2, 4, 6, 7), widths[:-1], widths[1:], strict=True):
        make.pair(f"mlp.layers.{place}", out, into)
    make.tensors[f"{text}embeddings.position_ids"] = torch.arange(40)[None]
    make.pair("blip.vision_proj", 8, WIDTH)
    make.pair("blip.text_proj", 8, WIDTH)
    return make.tensors


def imagereward_raw(w: dict[str, Tensor], pixels: Tensor, ids: list[list[int]]) -> Tensor:
    """The head's outputs [B], before they are standardised, of pixels [B, 3, 28, 28] and token ids."""
    v, t = "blip.visual_encoder.", "blip.text_encoder."
    x = conv2d(pixels, w[f"{v}patch_embed.proj.weight"], w[f"{v}patch_embed.proj.bias"], stride=PATCH)
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([w[f"{v}cls_token"].expand(len(x), 1, -1), x], 1) + w[f"{v}pos_embed"]
    for layer in range(LAYERS):
        b = f"{v}blocks.{layer}."
        q, k, value = _linear(w, f"{b}attn.qkv", _norm(w, f"{b}norm1", x, 1e-6)).chunk(3, -1)
        x = x + _linear(w, f"{b}attn.proj", _attention(q, k, value, None))
        inner = gelu(_linear(w, f"{b}mlp.fc1", _norm(w, f"{b}norm2", x, 1e-6)))
        x = x + _linear(w, f"{b}mlp.fc2", inner)
    seen = _norm(w, f"{v}norm", x, 1e-6)
    rows = []
    for row, image in zip(ids, seen, strict=True):
        y = w[f"{t}embeddings.word_embeddings.weight"][row] + w[f"{t}embeddings.position_embeddings.weight"][: len(row)]
        y = _norm(w, f"{t}embeddings.LayerNorm", y[None], 1e-12)
        for layer in range(LAYERS):
            b = f"{t}encoder.layer.{layer}."
            for kind in ("attention", "crossattention"):
                source = y if kind == "attention" else image[None]
                q = _linear(w, f"{b}{kind}.self.query", y)
                k, value = (_linear(w, f"{b}{kind}.self.{part}", source) for part in ("key", "value"))
                out = _linear(w, f"{b}{kind}.output.dense", _attention(q, k, value, None))
                y = _norm(w, f"{b}{kind}.output.LayerNorm", out + y, 1e-12)
            out = _linear(w, f"{b}output.dense", gelu(_linear(w, f"{b}intermediate.dense", y)))
            y = _norm(w, f"{b}output.LayerNorm", out + y, 1e-12)
        rows.append(y[0, 0])
    z = torch.stack(rows)
    for place in (0, 2, 4, 6, 7):
        z = _linear(w, f"mlp.layers.{place}", z)
    return z[:, 0]


class _Maker:
    def __init__(self, seed: int) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, name: str, *shape: int) -> None:
        self.tensors[name] = torch.randn(shape, generator=self._generator) * 0.15

    def pair(self, name: str, *shape: int) -> None:
        self(f"{name}.weight", *shape)
        self(f"{name}.bias", shape[0])


def _open_clip_blocks(w: dict[str, Tensor], prefix: str, x: Tensor, mask: Tensor | None) -> Tensor:
    for layer in range(LAYERS):
        b = f"{prefix}{layer}."
        packed = _norm(w, f"{b}ln_1", x) @ w[f"{b}attn.in_proj_weight"].T + w[f"{b}attn.in_proj_bias"]
        x = x + _linear(w, f"{b}attn.out_proj", _attention(*packed.chunk(3, -1), mask))
        x = x + _linear(w, f"{b}mlp.c_proj", gelu(_linear(w, f"{b}mlp.c_fc", _norm(w, f"{b}ln_2", x))))
    return x


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    scores = q @ k.transpose(1, 2) / WIDTH**0.5
    return (scores if mask is None else scores + mask).softmax(-1) @ v


def _linear(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def _norm(w: dict[str, Tensor], name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    return layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)
