"""LAION's aesthetic predictor (Schuhmann, 2022): a head on CLIP ViT-L/14's image features, trained on ratings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prdp.rewards.clip_model import ClipScorer, ClipWeights, check_settings, weights_from_folder, weights_version
from prdp.rewards.pixels import check_batch
from prdp.rewards.weight_files import bind, find_file, read_tensors
from prdp.types import Float64, UInt8

if TYPE_CHECKING:
    import torch

FILE = "sac+logos+ava1-l14-linearMSE.pth"
WIDTHS = (1024, 128, 64, 16, 1)
PLACES = (0, 2, 4, 6, 7)
"""Where the five layers stand in the authors' nn.Sequential; between the others stand dropouts, nowhere activations."""


class Aesthetic:
    """Predicted rating, mostly 4 to 7 of 10; the prompt plays no part.

    Args:
        path: the head: `sac+logos+ava1-l14-linearMSE.pth` of github.com/christophschuhmann/improved-aesthetic-predictor
            or a safetensors file of the same names, or a folder that holds it.
        clip: CLIP ViT-L/14 of OpenAI in transformers format, a folder or a hub id.
        device, dtype, batch_size, memory_mib: see `prdp.rewards.clip_model.ClipScorer`; the head is float32.

    Raises:
        ValueError: what `check` raises.
    """

    name = "aesthetic"

    def __init__(
        self,
        path: str,
        clip: str = "openai/clip-vit-large-patch14",
        device: str = "auto",
        dtype: str = "float32",
        batch_size: int | None = None,
        memory_mib: float | None = None,
    ) -> None:
        weights = weights_from_folder("clip", clip)
        file = find_file("path", path, FILE)
        assert weights is not None and file is not None
        self.version = weights_version([file, weights.file], dtype)
        head = read_tensors("path", file)
        self._head = aesthetic_head(f"path ({file})", head, _width(weights))
        self._clip = ClipScorer(self.name, weights, None, device, dtype, batch_size, memory_mib)

    @classmethod
    def check(cls, path: str, clip: str = "openai/clip-vit-large-patch14", **settings: Any) -> None:
        """Find the files and compare names and shapes of the tensors, without loading them.

        Raises:
            ValueError: naming the argument, the file and what is wrong with it.
        """
        check_settings(**settings)
        file = find_file("path", path, FILE, fetch=False)
        weights = weights_from_folder("clip", clip, fetch=False)
        if weights is not None:
            weights.model()
        if file is not None:
            head = read_tensors("path", file, shapes_only=True)
            aesthetic_head(f"path ({file})", head, _width(weights) if weights is not None else 768)

    def score(self, images: UInt8, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Float64:
        """Ratings, float64 [B], of uint8 images [B, H, W, 3] of any size."""
        import torch

        check_batch(images, prompts, metadata)
        features = self._clip.image_features(images)
        with torch.inference_mode():
            return self._head(torch.from_numpy(features)).squeeze(1).double().numpy()


def aesthetic_head(key: str, tensors: Mapping[str, torch.Tensor], width: int) -> torch.nn.Module:
    """The layers that turn image features [B, width] into ratings [B, 1]; five linear ones in a row.

    Args:
        key: of the configuration and the file, for messages.
        tensors: 'layers.0.weight', 'layers.0.bias', 'layers.2.weight' and so on.
        width: of the image features.

    Raises:
        ValueError: naming tensors that do not fit.
    """
    import torch

    widths = (width, *WIDTHS)
    with torch.device("meta"):
        layers = {
            str(place): torch.nn.Linear(into, out)
            for place, into, out in zip(PLACES, widths[:-1], widths[1:], strict=True)
        }
    head = torch.nn.ModuleDict({"layers": torch.nn.Sequential()})
    for place, layer in layers.items():
        head["layers"].add_module(place, layer)
    bind(key, head, tensors)
    return head["layers"].float().requires_grad_(False)


def _width(weights: ClipWeights) -> int:
    return int(weights.config.projection_dim)
