"""LLaVA-OneVision as its authors' code saves it, on transformers' classes: a language model that looks at images.

The layout is that of github.com/LLaVA-VL/LLaVA-NeXT: a Qwen2 with a SigLIP whose last layer is left out, a projector of
two layers, and the learned end of a row. Pictures are cut into tiles and put together as `anyres_max_<tiles>` says.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prdp.rewards.weight_files import bind, model_files, read_json, read_tensors
from prdp.types import UInt8

if TYPE_CHECKING:
    import torch

ARCHITECTURE = "LlavaQwenForCausalLM"
IMAGE = "<image>"
_TOWER = "model.vision_tower.vision_tower.vision_model."
_BEGINNINGS = (
    (_TOWER, "model.vision_tower."),
    ("model.mm_projector.0.", "model.multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "model.multi_modal_projector.linear_2."),
    ("model.image_newline", "model.image_newline"),
    ("model.", "model.language_model."),
    ("", ""),
)
_HEADS, _SIDE = 16, 384
"""Of the SigLIP that the models have, so400m; no tensor tells them."""
_EXPECTED = {"mm_projector_type": "mlp2x_gelu", "mm_patch_merge_type": "spatial_unpad"}
_TALK = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    f"{IMAGE}\n{{}}<|im_end|>\n<|im_start|>assistant\n"
)


def is_llava(configuration: Mapping[str, Any]) -> bool:
    """Whether a folder's config.json is of the authors' code."""
    return ARCHITECTURE in (configuration.get("architectures") or ())


class LlavaOnevision:
    """A model that writes about images.

    Args:
        key: of the configuration with its value, for messages.
        folder: as the authors' code saves it, with a tokenizer.
        device, dtype: of the network.

    Raises:
        ValueError: what `check_llava` raises.
    """

    def __init__(self, key: str, folder: Path, device: str, dtype: str) -> None:
        import torch
        from transformers import Qwen2Tokenizer
        from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
            LlavaOnevisionImageProcessorPil,
        )

        self._device = device
        network = _bound(key, folder, shapes_only=False).to(getattr(torch, dtype))
        words = network.model.language_model
        # Frequencies are no weights: made anew, and float32 in any precision, as in the authors' code.
        words.rotary_emb = type(words.rotary_emb)(network.config.text_config)
        self.network = network.to(device).eval().requires_grad_(False)
        self.tokenizer = Qwen2Tokenizer.from_pretrained(folder)
        self._ends = _ends(key, folder, self.tokenizer)
        side = self.network.config.vision_config.image_size
        self._prepare = LlavaOnevisionImageProcessorPil(
            size={"height": side, "width": side},
            image_grid_pinpoints=self.network.config.image_grid_pinpoints,
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        )

    def answers(self, images: UInt8, texts: Sequence[str], max_new_tokens: int) -> list[str]:
        """What the model writes, the likeliest word by word, about uint8 images [B, H, W, 3] when it is told texts."""
        import torch
        from PIL import Image

        given = self._prepare(images=[Image.fromarray(image) for image in images], return_tensors="pt")
        with torch.inference_mode():
            seen = self.network.model.get_image_features(
                given["pixel_values"].to(self._device, self.network.dtype), given["image_sizes"]
            ).pooler_output
            rows = [self._row(text, image) for text, image in zip(texts, seen, strict=True)]
            longest = max(map(len, rows))
            # On the left, where an answer does not follow.
            states = torch.stack([torch.nn.functional.pad(row, (0, 0, longest - len(row), 0)) for row in rows])
            mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=self._device)
            written = self.network.generate(
                inputs_embeds=states,
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                temperature=None,
                top_p=None,
                top_k=None,
                eos_token_id=self._ends,
                pad_token_id=self.tokenizer.pad_token_id or 0,
            )
        decoded: list[str] = self.tokenizer.batch_decode(written, skip_special_tokens=True)
        return decoded

    def _row(self, text: str, image: torch.Tensor) -> torch.Tensor:
        """States [tokens, width] of what the model is told, the image's where it stands."""
        import torch

        embed, parts = self.network.get_input_embeddings(), []
        for part in _TALK.format(text).split(IMAGE):
            ids = self.tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]
            parts += [embed(torch.tensor(ids, device=self._device)), image.to(self.network.dtype)]
        return torch.cat(parts[:-1])


def check_llava(key: str, folder: Path) -> None:
    """Compare the configuration, names and shapes with what is computed, without loading weights.

    Raises:
        ValueError: a configuration of another kind, or weights that do not fit it; names them.
    """
    _bound(key, folder, shapes_only=True)


def _bound(key: str, folder: Path, shapes_only: bool) -> Any:
    """The network with the tensors of a folder, on the meta device or on the host."""
    import torch
    from transformers import LlavaOnevisionForConditionalGeneration

    tensors: dict[str, torch.Tensor] = {}
    for file in model_files(key, folder):
        tensors |= {_renamed(name): value for name, value in read_tensors(key, file, shapes_only=shapes_only).items()}
    config = _configuration(key, folder, tensors)
    if config.text_config.tie_word_embeddings:
        tensors.setdefault("lm_head.weight", tensors["model.language_model.embed_tokens.weight"])
    with torch.device("meta"):
        network = LlavaOnevisionForConditionalGeneration(config)
    # Of the tower's last layer, which is left out, a file may have the pooling behind it.
    bind(key, network, tensors, ignore=("model.vision_tower.head.*",))
    return network


def _ends(key: str, folder: Path, tokenizer: Any) -> list[int]:
    """Tokens that end an answer: those of a folder's generation_config.json, and of the template."""
    file = folder / "generation_config.json"
    told = read_json(key, file).get("eos_token_id") if file.is_file() else None
    ends = {told} if isinstance(told, int) else set(told or ())
    turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
    return sorted(ends | ({turn} - {None, tokenizer.unk_token_id}))


def _renamed(name: str) -> str:
    """A tensor's name in transformers' class."""
    return next(new + name.removeprefix(old) for old, new in _BEGINNINGS if name.startswith(old))


def _configuration(key: str, folder: Path, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Transformers' configuration; what the authors' does not tell of the tower is read off its tensors."""
    from transformers import LlavaOnevisionConfig, Qwen2Config, SiglipVisionConfig

    file = folder / "config.json"
    given = read_json(key, file)
    tiles = re.fullmatch(r"anyres_max_(\d+)", str(given.get("image_aspect_ratio")))
    if tiles is None:
        raise ValueError(f"{key}: {file}: image_aspect_ratio={given.get('image_aspect_ratio')}: must be anyres_max_9")
    for name, value in _EXPECTED.items():
        if given.get(name) != value:
            raise ValueError(f"{key}: {file}: {name}={given.get(name)}: must be {value}")
    tower = "model.vision_tower."
    patches, places, first = (
        f"{tower}{name}.weight"
        for name in ("embeddings.patch_embedding", "embeddings.position_embedding", "encoder.layers.0.mlp.fc1")
    )
    words = "model.language_model.embed_tokens.weight"
    if missing := [name for name in (patches, places, first, words) if name not in tensors]:
        raise ValueError(f"{key}: {folder} lacks {missing[0]}, as transformers calls it; the tower has to be in it")
    width, _, _, patch = tensors[patches].shape
    grids, side = _grids(f"{key}: {file}", given.get("image_grid_pinpoints"))
    if (side // patch) ** 2 != len(tensors[places]):
        raise ValueError(
            f"{key}: {file}: image_grid_pinpoints are of tiles {side} wide, which patches of {patch} cut in "
            f"{(side // patch) ** 2}; the tower has places for {len(tensors[places])}"
        )
    layers = {name.split(".")[4] for name in tensors if name.startswith(f"{tower}encoder.layers.")}
    vision = SiglipVisionConfig(
        hidden_size=width,
        intermediate_size=len(tensors[first]),
        num_hidden_layers=len(layers),
        num_attention_heads=_HEADS,
        image_size=side,
        patch_size=patch,
        vision_use_head=False,
    )
    known = inspect.signature(Qwen2Config).parameters.keys() | {"rope_theta"}
    text = Qwen2Config(
        **{name: value for name, value in given.items() if name in known and value is not None}
        | {"vocab_size": len(tensors[words])}
    )
    return LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=tiles[0],
        image_grid_pinpoints=grids,
        tie_word_embeddings=text.tie_word_embeddings,
    )


def _grids(where: str, given: Any) -> tuple[list[list[int]], int]:
    """(height, width) of what tiles make, in the authors' order, which decides between equals; and a tile's side."""
    if isinstance(given, str) and (found := re.findall(r"\((\d+)x(\d+)\)", given)):
        (low, left), (high, right) = (tuple(map(int, one)) for one in (found[0], found[-1]))
        given = [[_SIDE * a, _SIDE * b] for a in range(low, high + 1) for b in range(left, right + 1)]
    pairs = isinstance(given, list) and given and all(isinstance(one, list) and len(one) == 2 for one in given)
    sides = [number for one in given for number in one] if pairs else []
    whole = all(isinstance(number, int) and number > 0 for number in sides)
    if not sides or not whole or any(number % min(sides) for number in sides):
        raise ValueError(f"{where}: image_grid_pinpoints={given!r}: must be pairs of multiples of a tile's side")
    return [[height, width] for width, height in given], min(sides)
