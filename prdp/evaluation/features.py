"""Feature spaces in which images are compared, for diversity and drift."""

from __future__ import annotations

from typing import Any, Protocol

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
    """Unit image embeddings of a CLIP model, prepared as CLIP does; distances lie in [0, 2].

    Args:
        path: folder of a CLIP model in transformers format, or a hub id.
        device, dtype, batch_size, memory_mib: see `prdp.rewards.clip_model.ClipScorer`.

    Raises:
        ValueError: what `check` raises.
    """

    name = "clip"

    def __init__(
        self,
        path: str,
        device: str = "auto",
        dtype: str = "float32",
        batch_size: int | None = None,
        memory_mib: float | None = None,
    ) -> None:
        from prdp.rewards.clip_model import ClipScorer, weights_from_folder, weights_version

        weights = weights_from_folder("path", path)
        assert weights is not None
        self.version = weights_version([weights.file], dtype)
        self._clip = ClipScorer("features", weights, None, device, dtype, batch_size, memory_mib)

    @classmethod
    def check(cls, path: str, **settings: Any) -> None:
        """Find the files and compare names and shapes of the tensors, without loading them.

        Raises:
            ValueError: naming the argument, the file and what is wrong with it.
        """
        from prdp.rewards.clip_model import check_settings, weights_from_folder

        check_settings(**settings)
        weights = weights_from_folder("path", path, fetch=False)
        if weights is not None:
            weights.model()

    def features(self, images: UInt8) -> Float32:
        """Float32 [n, D] of unit length."""
        return self._clip.image_features(images)
