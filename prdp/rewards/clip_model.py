"""A CLIP model that compares images with prompts, from a transformers folder or an open_clip checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prdp.config import PRECISIONS
from prdp.rewards.batching import Batches, check_batching, check_device, choose_device
from prdp.rewards.open_clip_format import clip_configuration, clip_tensors, is_open_clip
from prdp.rewards.pixels import CLIP_MEAN, CLIP_STD, short_side_pixels
from prdp.rewards.prompt_tokens import PromptTokens
from prdp.rewards.weight_files import Tensors, bind, digest, find_file, find_folder, first_of, read_json, read_tensors
from prdp.types import Float64, UInt8

if TYPE_CHECKING:
    import torch

FOLDER_FILES = (("model.safetensors", "*.json", "*.txt"), ("pytorch_model.bin", "*.json", "*.txt"))
_LEFT_OVER = ("*position_ids",)


@dataclass(frozen=True)
class ClipWeights:
    """A checkpoint that has been read and not yet been bound.

    Attributes:
        key: of the configuration and the file, for messages.
        config: transformers' CLIPConfig.
        tensors: by CLIPModel's names.
        file: where they were read.
        mean, std: per channel, for values in [0, 1].
    """

    key: str
    config: Any
    tensors: Tensors
    file: Path
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    @property
    def size(self) -> int:
        """Side of the images that the vision tower takes, in pixels."""
        return int(self.config.vision_config.image_size)

    @property
    def vocabulary(self) -> int:
        """Number of token embeddings."""
        return int(self.config.text_config.vocab_size)

    def model(self, device: str = "cpu", dtype: str = "float32") -> Any:
        """A CLIPModel in evaluation mode; on the meta device when the tensors are.

        Raises:
            ValueError: naming tensors that do not fit.
        """
        import torch
        from transformers import CLIPModel

        with torch.device("meta"):
            model = CLIPModel(self.config)
        bind(self.key, model, self.tensors, _LEFT_OVER)
        if not next(model.parameters()).is_meta:
            model.to(device=device, dtype=getattr(torch, dtype))
        return model.eval().requires_grad_(False)


class ClipScorer:
    """Cosines of images and prompts.

    Args:
        reward: its name, for messages.
        weights: of the model.
        tokenizer: turns lists of prompts into ids; see `PromptTokens`.
        device: see `prdp.rewards.batching.choose_device`.
        dtype: of the network; features are normalised and compared in float32.
        batch_size, memory_mib: see `prdp.rewards.batching.Batches`.
        pixels: uint8 images [B, H, W, 3] to float32 [B, 3, size, size]; None for CLIP's own.
        crop_rounds: of CLIP's own, see `prdp.rewards.pixels.short_side_pixels`.
        clean: applied to each prompt.
    """

    def __init__(
        self,
        reward: str,
        weights: ClipWeights,
        tokenizer: Any = None,
        device: str = "auto",
        dtype: str = "float32",
        batch_size: int | None = None,
        memory_mib: float | None = None,
        pixels: Callable[[UInt8], torch.Tensor] | None = None,
        clean: Callable[[str], str] = str,
        crop_rounds: bool = True,
    ) -> None:
        check_settings(device, dtype, batch_size, memory_mib)
        self._device = choose_device(reward, device)
        self._model = weights.model(self._device, dtype)
        self._batches = Batches(reward, batch_size, memory_mib, _image_mib(weights.config.vision_config, dtype))
        self._pixels = pixels or (
            lambda images: short_side_pixels(images, weights.size, weights.mean, weights.std, crop_rounds)
        )
        self._clean = clean
        if tokenizer is not None:
            self._tokens = PromptTokens(reward, tokenizer, self._model.config.text_config.max_position_embeddings)

    @property
    def logit_scale(self) -> float:
        """The factor that the model was trained to multiply its cosines by."""
        return float(self._model.logit_scale.exp())

    def cosines(self, images: UInt8, prompts: Sequence[str]) -> Float64:
        """Cosine of each image and its prompt, float64 [B], of uint8 images [B, H, W, 3]."""
        image = self.image_features(images)
        texts, which = distinct(prompts)
        text = self.text_features(texts)[which]
        return (image * text).sum(axis=1).astype(np.float64)

    def image_features(self, images: UInt8) -> np.ndarray:
        """Projected image features of length 1, float32 [B, D]."""
        return self._batches.map(lambda part: self._image_batch(images[part]), len(images))

    def text_features(self, prompts: Sequence[str]) -> np.ndarray:
        """Projected text features of length 1, float32 [B, D]."""
        ids, _ = self._tokens([self._clean(prompt) for prompt in prompts])
        return self._batches.map(lambda part: self._text_batch(ids[part]), len(prompts))

    def _image_batch(self, images: UInt8) -> np.ndarray:
        import torch

        with torch.inference_mode():
            pixels = self._pixels(images).to(self._device, self._model.dtype)
            return _normalised(self._model.get_image_features(pixel_values=pixels))

    def _text_batch(self, ids: torch.Tensor) -> np.ndarray:
        import torch

        # Attention is causal, so padding on the right changes nothing before it and needs no mask.
        with torch.inference_mode():
            return _normalised(self._model.get_text_features(input_ids=ids.to(self._device)))


def weights_from_folder(key: str, path: str, fetch: bool = True) -> ClipWeights | None:
    """Read a CLIP model in transformers format, from a folder or the hub.

    Args:
        key: of the configuration, for messages.
        path: a folder with config.json and model.safetensors or pytorch_model.bin, or a hub id.
        fetch: download what is missing and read the tensors; otherwise only names and shapes are read, and None is
            returned for what the hub has still to give.

    Raises:
        ValueError: naming the file that is missing, damaged or no CLIP model.
    """
    folder = find_folder(key, path, FOLDER_FILES, fetch)
    if folder is None:
        return None
    configuration = read_json(key, folder / "config.json")
    if configuration.get("model_type") != "clip":
        raise ValueError(
            f"{key}={path}: {folder / 'config.json'} is of a '{configuration.get('model_type')}' model, expected 'clip'"
        )
    file = first_of(key, folder, ("model.safetensors", "pytorch_model.bin"))
    tensors = read_tensors(key, file, shapes_only=not fetch)
    mean, std = CLIP_MEAN, CLIP_STD
    if (folder / "preprocessor_config.json").is_file():
        preparation = read_json(key, folder / "preprocessor_config.json")
        mean = tuple(preparation.get("image_mean", mean))
        std = tuple(preparation.get("image_std", std))
    return ClipWeights(f"{key} ({file})", _clip_config(configuration), tensors, file, mean, std)


def weights_from_open_clip(
    key: str, path: str, name: str | None = None, activation: str = "gelu", fetch: bool = True
) -> ClipWeights | None:
    """Read an open_clip checkpoint, {'state_dict': tensors} or the tensors alone.

    Args:
        key: of the configuration, for messages.
        path: a file, a folder or a hub repository.
        name: of the file inside a folder or repository.
        activation: see `prdp.rewards.open_clip_format.clip_configuration`.
        fetch: as in `weights_from_folder`.

    Raises:
        ValueError: naming the file that is missing, damaged or of another format.
    """
    file = find_file(key, path, name, fetch)
    if file is None:
        return None
    tensors = read_tensors(key, file, inside=("state_dict",), shapes_only=not fetch)
    tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    if not is_open_clip(tensors):
        raise ValueError(
            f"{key}: {file} is no CLIP checkpoint in open_clip format; its first tensors are "
            f"{', '.join(list(tensors)[:3])}"
        )
    config = _clip_config(clip_configuration(tensors, activation))
    return ClipWeights(f"{key} ({file})", config, clip_tensors(tensors), file)


def weights_version(files: Sequence[Path], dtype: str, code: str = "1") -> str:
    """A reward's version: of its code, of its weights, and of its precision where that is not float32."""
    return "-".join([code, digest(files), *([] if dtype == "float32" else [dtype])])


def check_settings(
    device: str = "auto", dtype: str = "float32", batch_size: int | None = None, memory_mib: float | None = None
) -> None:
    """Raise ValueError for settings that no machine offers; whether the device is there is found out on its machine."""
    if dtype not in PRECISIONS:
        raise ValueError(f"dtype={dtype}: must be {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}")
    check_device(device)
    check_batching(batch_size, memory_mib)


def distinct(prompts: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The different prompts in order, and for each prompt its place among them: a group's images share one."""
    places: dict[str, int] = {}
    which = np.array([places.setdefault(prompt, len(places)) for prompt in prompts])
    return list(places), which


def _normalised(output: Any) -> np.ndarray:
    import torch

    # transformers 5 wraps the features; earlier ones return them.
    features = output if isinstance(output, torch.Tensor) else output.pooler_output
    return torch.nn.functional.normalize(features.float(), dim=-1).cpu().numpy()


def _clip_config(arguments: dict[str, Any]) -> Any:
    from transformers import CLIPConfig
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    # It complains of special tokens beyond the vocabulary of small models, which nothing here looks at.
    logging.set_verbosity_error()
    try:
        return CLIPConfig(**arguments)
    finally:
        logging.set_verbosity(verbosity)


def _image_mib(vision: Any, dtype: str) -> float:
    """MiB of activations that one image needs at the peak of a pass through the vision tower, roughly."""
    tokens = (vision.image_size // vision.patch_size) ** 2 + 1
    # A block holds its input, its normalised copy, queries, keys, values, and an MLP layer four times as wide, twice.
    return tokens * vision.hidden_size * 16 * (4 if dtype == "float32" else 2) / 2**20
