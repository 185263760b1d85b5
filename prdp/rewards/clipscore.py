"""CLIPScore (Hessel et al., 2021): agreement of image and prompt as the cosine of any CLIP model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prdp.rewards.clip_model import check_folder, scorer_from_folder
from prdp.rewards.pixels import check_batch
from prdp.types import Float64, UInt8

HUB_ID = "openai/clip-vit-large-patch14"


class CLIPScore:
    """The bare cosine, some 0.2 to 0.35 with OpenAI's models.

    What is published under this name is a multiple: 2.5 max(cosine, 0) with ViT-B/32 and prompts that start with
    'A photo depicts ' (Hessel et al.), or 100 max(cosine, 0) (torchmetrics).

    Args:
        path: a folder in transformers format, or a hub id.
        prefix: put before each prompt.
        tokenizer: a folder or hub id; None where `path` holds it.
        device, dtype, batch_size, memory_mib: see `prdp.rewards.clip_model.ClipScorer`.

    Raises:
        ValueError: what `check` raises.
    """

    name = "clipscore"

    def __init__(
        self,
        path: str = HUB_ID,
        prefix: str = "",
        tokenizer: str | None = None,
        device: str = "auto",
        dtype: str = "float32",
        batch_size: int | None = None,
        memory_mib: float | None = None,
    ) -> None:
        self._prefix = prefix
        self._clip, self.version = scorer_from_folder(
            self.name, path, tokenizer, device, dtype, batch_size, memory_mib, like_openai=True
        )
        if prefix:
            self.version += f"-{prefix!r}"

    @classmethod
    def check(cls, path: str = HUB_ID, prefix: str = "", tokenizer: str | None = None, **settings: Any) -> None:
        """Check the files without loading them; raises ValueError as `check_folder` does."""
        check_folder(path, tokenizer, **settings)

    def score(self, images: UInt8, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Float64:
        """Cosines, float64 [B], of uint8 images [B, H, W, 3] of any size."""
        check_batch(images, prompts, metadata)
        return self._clip.cosines(images, [self._prefix + prompt for prompt in prompts])
