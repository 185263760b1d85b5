"""CLIPScore (Hessel et al., 2021): agreement of image and prompt as the cosine of any CLIP model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prdp.rewards.clip_model import ClipScorer, check_settings, weights_from_folder, weights_version
from prdp.rewards.pixels import check_batch
from prdp.rewards.prompt_tokens import PromptCleaner, check_tokenizer, load_tokenizer
from prdp.types import Float64, UInt8


class CLIPScore:
    """The bare cosine, some 0.2 to 0.35 with OpenAI's models.

    What is published under this name is a multiple: 2.5 max(cosine, 0) with ViT-B/32 and prompts that start with
    'A photo depicts ' (Hessel et al.), or 100 max(cosine, 0) (torchmetrics).

    Args:
        path: a folder in transformers format, or a hub id; None takes `hub_id`.
        prefix: put before each prompt.
        tokenizer: a folder or hub id; None where `path` holds it.
        device, dtype, batch_size, memory_mib: see `prdp.rewards.clip_model.ClipScorer`.

    Attributes:
        hub_id: where the weights are published.
        like_openai: clean prompts and crop images as openai/CLIP does it; otherwise as transformers does it.

    Raises:
        ValueError: what `check` raises.
    """

    name = "clipscore"
    hub_id = "openai/clip-vit-large-patch14"
    like_openai = True

    def __init__(
        self,
        path: str | None = None,
        prefix: str = "",
        tokenizer: str | None = None,
        device: str = "auto",
        dtype: str = "float32",
        batch_size: int | None = None,
        memory_mib: float | None = None,
    ) -> None:
        weights = weights_from_folder("path", path or self.hub_id)
        assert weights is not None
        key = "path" if tokenizer is None else "tokenizer"
        words = load_tokenizer(key, tokenizer or str(weights.file.parent), "CLIPTokenizer", weights.vocabulary)
        clean = PromptCleaner(self.name) if self.like_openai else str
        self._clip = ClipScorer(
            self.name,
            weights,
            words,
            device,
            dtype,
            batch_size,
            memory_mib,
            clean=clean,
            crop_rounds=self.like_openai,
        )
        self._prefix = prefix
        self.version = weights_version([weights.file], dtype) + (f"-{prefix!r}" if prefix else "")

    @classmethod
    def check(
        cls, path: str | None = None, prefix: str = "", tokenizer: str | None = None, **settings: Any
    ) -> None:
        """Find the files and compare names and shapes of the tensors, without loading them.

        Raises:
            ValueError: naming the argument, the file and what is wrong with it.
        """
        check_settings(**settings)
        weights = weights_from_folder("path", path or cls.hub_id, fetch=False)
        if weights is not None:
            weights.model()
        check_tokenizer("path" if tokenizer is None else "tokenizer", tokenizer or path or cls.hub_id)

    def score(self, images: UInt8, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Float64:
        """Cosines, float64 [B], of uint8 images [B, H, W, 3] of any size."""
        check_batch(images, prompts, metadata)
        return self._clip.cosines(images, [self._prefix + prompt for prompt in prompts])
