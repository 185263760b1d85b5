"""ImageReward (Xu et al., 2023): human preference from BLIP, the prompt attending to the image, and a linear head.

The checkpoint of github.com/THUDM/ImageReward is read into transformers' BLIP; the `image-reward` package, which does
not run with transformers 5, is not needed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prdp.rewards.aesthetic import aesthetic_head
from prdp.rewards.batching import Batches, choose_device
from prdp.rewards.clip_model import check_settings, distinct, weights_version
from prdp.rewards.pixels import check_batch, short_side_pixels
from prdp.rewards.prompt_tokens import BERT_TOKENIZER, PromptTokens, check_tokenizer, load_tokenizer
from prdp.rewards.weight_files import Tensors, bind, find_file, read_tensors
from prdp.types import Float64, UInt8

if TYPE_CHECKING:
    import torch

FILE = "ImageReward.pt"
MEAN = 0.16717362830052426
STD = 1.0333394966054072
"""Of the raw outputs, as the authors measured them; what is reported has mean 0 and spread 1 on their data."""
MAX_TOKENS = 35
_HEAD_WIDTH = 64
_VISION, _TEXT, _HEAD = "blip.visual_encoder.", "blip.text_encoder.", "mlp."
_UNUSED = ("blip.vision_proj.", "blip.text_proj.", "blip.itm_head.", "blip.text_decoder.")
"""What BLIP's pretraining needed and scoring does not."""

_TELLING = (
    f"{_VISION}pos_embed",
    f"{_VISION}patch_embed.proj.weight",
    f"{_VISION}blocks.0.mlp.fc1.bias",
    f"{_TEXT}embeddings.word_embeddings.weight",
    f"{_TEXT}embeddings.position_embeddings.weight",
    f"{_TEXT}encoder.layer.0.intermediate.dense.bias",
    f"{_TEXT}encoder.layer.0.crossattention.self.key.weight",
)
"""Tensors whose shapes tell the architecture."""

_VISION_NAMES = (
    (r"cls_token", "embeddings.class_embedding"),
    (r"pos_embed", "embeddings.position_embedding"),
    (r"patch_embed\.proj\.(.*)", r"embeddings.patch_embedding.\1"),
    (r"norm\.(.*)", r"post_layernorm.\1"),
    (r"blocks\.(\d+)\.norm(\d)\.(.*)", r"encoder.layers.\1.layer_norm\2.\3"),
    (r"blocks\.(\d+)\.attn\.qkv\.(.*)", r"encoder.layers.\1.self_attn.qkv.\2"),
    (r"blocks\.(\d+)\.attn\.proj\.(.*)", r"encoder.layers.\1.self_attn.projection.\2"),
    (r"blocks\.(\d+)\.mlp\.(.*)", r"encoder.layers.\1.mlp.\2"),
)


class ImageReward:
    """Standardised preference, mostly -2 to 2, higher is better.

    Args:
        path: the checkpoint ImageReward.pt, a folder that holds it, or the hub repository.
        tokenizer: a folder with the tokenizer of bert-base-uncased, or a hub id.
        device, dtype, batch_size, memory_mib: see `prdp.rewards.clip_model.ClipScorer`; the head is float32.

    Raises:
        ValueError: what `check` raises.
    """

    name = "imagereward"

    def __init__(
        self,
        path: str,
        tokenizer: str = BERT_TOKENIZER,
        device: str = "auto",
        dtype: str = "float32",
        batch_size: int | None = None,
        memory_mib: float | None = None,
    ) -> None:
        import torch

        check_settings(device, dtype, batch_size, memory_mib)
        file = find_file("path", path, FILE)
        assert file is not None
        key = f"path ({file})"
        self.version = weights_version([file], dtype)
        self._device = choose_device(self.name, device)
        vision, text, self._head = _modules(key, read_tensors("path", file, inside=("state_dict", "model")))
        precision = getattr(torch, dtype)
        self._vision, self._text = (module.to(self._device, precision) for module in (vision, text))
        words = load_tokenizer("tokenizer", tokenizer, "BertTokenizer", text.config.vocab_size)
        self._tokens = PromptTokens(self.name, words, MAX_TOKENS)
        self._size = vision.config.image_size
        # Activations of a block: its input, a normalised copy, queries, keys, values, attention, an MLP layer, twice.
        places = (self._size // vision.config.patch_size) ** 2 + 1
        mib = places * vision.config.hidden_size * 24 * precision.itemsize / 2**20
        self._batches = Batches(self.name, batch_size, memory_mib, image_mib=mib)

    @classmethod
    def check(cls, path: str, tokenizer: str = BERT_TOKENIZER, **settings: Any) -> None:
        """Find the files and compare names and shapes of the tensors, without loading them.

        Raises:
            ValueError: naming the argument, the file and what is wrong with it.
        """
        check_settings(**settings)
        file = find_file("path", path, FILE, fetch=False)
        if file is not None:
            tensors = read_tensors("path", file, inside=("state_dict", "model"), shapes_only=True)
            _modules(f"path ({file})", tensors)
        check_tokenizer("tokenizer", tokenizer)

    def score(self, images: UInt8, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Float64:
        """Preferences, float64 [B], of uint8 images [B, H, W, 3] of any size."""
        check_batch(images, prompts, metadata)
        texts, which = distinct(prompts)
        ids, mask = self._tokens(texts)
        ids, mask = ids[which], mask[which]
        return self._batches.map(lambda part: self._score_batch(images[part], ids[part], mask[part]), len(images))

    def _score_batch(self, images: UInt8, ids: torch.Tensor, mask: torch.Tensor) -> Float64:
        import torch

        with torch.inference_mode():
            pixels = short_side_pixels(images, self._size).to(self._device, self._vision.dtype)
            seen = self._vision(pixel_values=pixels).last_hidden_state
            read = self._text(
                input_ids=ids.to(self._device), attention_mask=mask.to(self._device), encoder_hidden_states=seen
            ).last_hidden_state
            raw = self._head(read[:, 0].float().cpu()).squeeze(1).double()
            return ((raw - MEAN) / STD).numpy()


def _modules(key: str, tensors: Tensors) -> tuple[Any, Any, torch.nn.Module]:
    """BLIP's vision tower, its text encoder and the head, bound to the tensors; on the meta device when these are."""
    import torch
    from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

    if missing := [name for name in _TELLING if name not in tensors]:
        raise ValueError(
            f"{key}: there is no {missing[0]}, so this is no ImageReward checkpoint; its first tensors are "
            f"{', '.join(list(tensors)[:3])}"
        )
    parts: dict[str, Tensors] = {_VISION: {}, _TEXT: {}, _HEAD: {}}
    strange = []
    for name, value in tensors.items():
        prefix = next((prefix for prefix in parts if name.startswith(prefix)), None)
        if prefix is not None:
            parts[prefix][name[len(prefix) :]] = value
        elif not name.startswith(_UNUSED):
            strange.append(name)
    if strange:
        raise ValueError(f"{key}: {', '.join(strange[:4])} belong to no part of ImageReward")
    with torch.device("meta"):
        vision = BlipVisionModel(BlipVisionConfig(**_vision_config(parts[_VISION])))
        text = BlipTextModel(BlipTextConfig(**_text_config(parts[_TEXT])), add_pooling_layer=False)
    bind(f"{key}, {_VISION}*", vision, {_vision_name(name): value for name, value in parts[_VISION].items()})
    bind(f"{key}, {_TEXT}*", text, parts[_TEXT], ignore=("*position_ids",))
    head = aesthetic_head(f"{key}, {_HEAD}*", parts[_HEAD], text.config.hidden_size)
    return vision.eval().requires_grad_(False), text.eval().requires_grad_(False), head


def _vision_config(tensors: Tensors) -> dict[str, Any]:
    width, _, patch, _ = tensors["patch_embed.proj.weight"].shape
    return {
        "hidden_size": width,
        "intermediate_size": tensors["blocks.0.mlp.fc1.bias"].shape[0],
        "num_hidden_layers": _layers(tensors, "blocks."),
        "num_attention_heads": max(1, width // _HEAD_WIDTH),
        "image_size": round((tensors["pos_embed"].shape[1] - 1) ** 0.5) * patch,
        "patch_size": patch,
        "layer_norm_eps": 1e-6,
    }


def _text_config(tensors: Tensors) -> dict[str, Any]:
    vocabulary, width = tensors["embeddings.word_embeddings.weight"].shape
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": tensors["encoder.layer.0.intermediate.dense.bias"].shape[0],
        "encoder_hidden_size": tensors["encoder.layer.0.crossattention.self.key.weight"].shape[1],
        "num_hidden_layers": _layers(tensors, "encoder.layer."),
        "num_attention_heads": max(1, width // _HEAD_WIDTH),
        "max_position_embeddings": tensors["embeddings.position_embeddings.weight"].shape[0],
        # To transformers' BLIP this means: with layers that attend to the image; no mask comes with it.
        "is_decoder": True,
    }


def _vision_name(name: str) -> str:
    for pattern, replacement in _VISION_NAMES:
        if match := re.fullmatch(pattern, name):
            return match.expand(replacement)
    return name


def _layers(tensors: Tensors, prefix: str) -> int:
    return 1 + max((int(name[len(prefix) :].split(".")[0]) for name in tensors if name.startswith(prefix)), default=0)
