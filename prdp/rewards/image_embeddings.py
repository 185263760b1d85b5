"""Pictures as unit vectors whose cosines tell how alike they are: by CLIP, by networks of DINO's kind, by pixels."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np

from prdp.rewards.batching import Batches, choose_device
from prdp.rewards.clip_model import ClipScorer, weights_from_folder, weights_version
from prdp.rewards.pixels import short_side_pixels
from prdp.rewards.transformers_models import load_pretrained
from prdp.rewards.weight_files import find_folder, model_files, read_json, read_tensors
from prdp.types import Float32, UInt8

FILES = (("*.safetensors", "*.json"), ("*.bin", "*.json"))
CLIP = "clip"
DINOS = {
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "dinov3_vit": "DINOv3ViTModel",
    "vit": "ViTModel",
}
"""`model_type` of a configuration -> class of transformers; DINO's first networks are plain ViTs."""
SIDE = 32
"""Of the small pictures that are compared pixel by pixel."""


class Embeddings(Protocol):
    """A map from pictures to vectors.

    Attributes:
        version: changes whenever the same picture would get another vector.
    """

    version: str

    def features(self, images: UInt8) -> Float32:
        """Float32 [n, D] of length 1, of uint8 images [n, H, W, 3]."""
        ...


class SmallPixels:
    """The square in the middle at 32 x 32, less its mean: a cosine is the correlation of pixels."""

    version = f"pixels{SIDE}"

    def features(self, images: UInt8) -> Float32:
        """See `Embeddings`; zeros for a picture of one grey."""
        rows = short_side_pixels(images, SIDE, (0.5,) * 3, (1.0,) * 3).flatten(1).numpy()
        return _unit(rows - rows.mean(axis=1, keepdims=True))


class ClipEmbeddings:
    """Projected image features of a CLIP model, prepared as CLIP does."""

    def __init__(self, reward: str, key: str, path: str, device: str, dtype: str, *batching: Any) -> None:
        weights = weights_from_folder(key, path)
        assert weights is not None
        self.version = weights_version([weights.file], dtype)
        self._clip = ClipScorer(reward, weights, None, device, dtype, *batching)

    def features(self, images: UInt8) -> Float32:
        """See `Embeddings`."""
        return self._clip.image_features(images)


class DinoEmbeddings:
    """The normalised class token of a network of DINO's kind, prepared as its folder says."""

    def __init__(self, reward: str, key: str, path: str, device: str, dtype: str, *batching: Any) -> None:
        import transformers

        folder = find_folder(key, path, FILES)
        assert folder is not None
        kind = _kind(key, folder)
        architecture = getattr(transformers, DINOS[kind])
        if kind == "vit":  # its pooling layer is none of DINO's
            bare = partial(architecture.from_pretrained, add_pooling_layer=False)
            architecture = SimpleNamespace(from_pretrained=bare)
        self._device = choose_device(reward, device)
        self._model, self._processor = load_pretrained(
            f"{key}={path}", folder, architecture, transformers.AutoImageProcessor, self._device, dtype
        )
        self.version = weights_version(model_files(key, folder), dtype)
        self._batches = Batches(reward, *batching)

    def features(self, images: UInt8) -> Float32:
        """See `Embeddings`."""
        return self._batches.map(lambda part: self._batch(images[part]), len(images))

    def _batch(self, images: UInt8) -> Float32:
        import torch

        pixels = self._processor(images=list(images), return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            output = self._model(pixel_values=pixels.to(self._device, self._model.dtype))
        return _unit(output.last_hidden_state[:, 0].float().cpu().numpy())


def load_embeddings(
    reward: str, key: str, path: str | None, device: str, dtype: str, batch_size: int | None, memory_mib: float | None
) -> Embeddings:
    """The embeddings of a model in transformers format; of pixels where there is none.

    Args:
        reward: its name, for messages.
        key: of the configuration.
        path: a folder or a hub id.
        device, dtype, batch_size, memory_mib: see `prdp.rewards.clip_model.ClipScorer`.

    Raises:
        ValueError: what `check_embeddings` raises; weights that do not fit the configuration.
    """
    if path is None:
        return SmallPixels()
    folder = find_folder(key, path, FILES)
    assert folder is not None
    kind = ClipEmbeddings if _kind(key, folder) == CLIP else DinoEmbeddings
    return kind(reward, key, path, device, dtype, batch_size, memory_mib)


def check_embeddings(key: str, path: str | None) -> None:
    """Check the files of a folder, or of a cached one of the hub, without loading them.

    Raises:
        ValueError: naming the file that is missing, damaged or of another kind of model.
    """
    folder = None if path is None else find_folder(key, path, FILES, fetch=False)
    if path is None or folder is None:
        return
    if _kind(key, folder) == CLIP:
        weights = weights_from_folder(key, path, fetch=False)
        if weights is not None:
            weights.model()
        return
    for file in model_files(key, folder):
        read_tensors(key, file, shapes_only=True)


def _kind(key: str, folder: Path) -> str:
    kind = str(read_json(key, folder / "config.json").get("model_type"))
    if kind != CLIP and kind not in DINOS:
        raise ValueError(f"{key}: {folder} holds a '{kind}' model, must be one of {CLIP}, {', '.join(DINOS)}")
    return kind


def _unit(rows: np.ndarray) -> Float32:
    """Rows of length 1; those of zeros stay."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(lengths > 0, lengths, 1), np.float32)
