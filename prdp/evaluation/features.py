"""Feature spaces in which images are compared, for diversity and drift."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from prdp.evaluation.diversity import SIDE, pixel_features
from prdp.types import Float32, UInt8


class Features(Protocol):
    """A map from images to vectors whose Euclidean distance means something.

    Attributes:
        name: as it appears in tables.
        version: changes whenever the same image would get other features.
    """

    name: str
    version: str

    def features(self, images: UInt8) -> Float32:
        """Float32 [n, D] of uint8 images [n, H, W, 3]."""
        ...


class Pixels:
    """Low-resolution pixels: root mean square difference, in [0, 1]. Sees colours and layout, and no meaning."""

    name = "pixels"
    version = f"1-{SIDE}"

    def features(self, images: UInt8) -> Float32:
        """As `pixel_features`."""
        return pixel_features(images)


class Clip:
    """Unit image embeddings of a CLIP model; distances lie in [0, 2].

    Args:
        path: folder of a transformers CLIP model with its image processor, or a hub id.
        device: 'auto' takes CUDA when there is one.
        batch: images per network call.

    Raises:
        ValueError: nothing at the path, or something else than a CLIP model.
    """

    name = "clip"

    def __init__(self, path: str, device: str = "auto", batch: int = 32) -> None:
        import torch
        from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

        folder = Path(path).expanduser()
        where = str(folder) if folder.exists() else path
        try:
            self._processor: Any = CLIPImageProcessor.from_pretrained(where)
            model: Any = CLIPVisionModelWithProjection.from_pretrained(where, use_safetensors=True)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"features.path={path}: cannot be loaded as a CLIP model: {error}") from error
        self._device = device if device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
        self._model = model.eval().to(self._device)
        self._batch = batch
        self.version = f"1-{_weights_digest(self._model)}"

    def features(self, images: UInt8) -> Float32:
        """Float32 [n, D] of unit length."""
        import torch

        parts = []
        for start in range(0, len(images), self._batch):
            inputs = self._processor(images=list(images[start : start + self._batch]), return_tensors="pt")
            with torch.no_grad():
                embedded = self._model(pixel_values=inputs["pixel_values"].to(self._device)).image_embeds.float()
            parts.append(torch.nn.functional.normalize(embedded, dim=-1).cpu().numpy())
        return np.concatenate(parts)


def _weights_digest(model: Any) -> str:
    digest = hashlib.blake2b(digest_size=6)
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()
