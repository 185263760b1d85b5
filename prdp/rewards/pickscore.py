"""PickScore (Kirstain et al., 2023): which image people pick, as the cosine of a fine-tuned CLIP ViT-H/14."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prdp.rewards.clip_model import check_folder, scorer_from_folder
from prdp.rewards.pixels import check_batch
from prdp.types import Float64, UInt8

HUB_ID = "yuvalkirstain/PickScore_v1"


class PickScore:
    """Cosine of image and prompt, about 0.2 for Stable Diffusion, as in the PRDP paper.

    The authors' own scale is about 100 times this: they multiply by the model's logit scale.

    Args:
        path: a folder in transformers format, or a hub id.
        tokenizer: a folder or hub id; None where `path` holds it.
        device, dtype, batch_size, memory_mib: see `prdp.rewards.clip_model.ClipScorer`.

    Raises:
        ValueError: what `check` raises.
    """

    name = "pickscore"

    def __init__(
        self,
        path: str = HUB_ID,
        tokenizer: str | None = None,
        device: str = "auto",
        dtype: str = "float32",
        batch_size: int | None = None,
        memory_mib: float | None = None,
    ) -> None:
        self._clip, self.version = scorer_from_folder(
            self.name, path, tokenizer, device, dtype, batch_size, memory_mib, like_openai=False
        )

    @classmethod
    def check(cls, path: str = HUB_ID, tokenizer: str | None = None, **settings: Any) -> None:
        """Check the files without loading them; raises ValueError as `check_folder` does."""
        check_folder(path, tokenizer, **settings)

    def score(self, images: UInt8, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Float64:
        """Cosines, float64 [B], of uint8 images [B, H, W, 3] of any size."""
        check_batch(images, prompts, metadata)
        return self._clip.cosines(images, prompts)
