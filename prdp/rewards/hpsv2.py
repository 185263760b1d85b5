"""HPSv2 and HPSv2.1 (Wu et al., 2023): human preference as the cosine of a fine-tuned CLIP ViT-H/14.

The checkpoints of github.com/tgxs002/HPSv2 are read into transformers' CLIPModel; the `hpsv2` package is not needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prdp.rewards.clip_model import ClipScorer, check_settings, weights_from_open_clip, weights_version
from prdp.rewards.pixels import check_batch, long_side_pixels
from prdp.rewards.prompt_tokens import CLIP_TOKENIZER, PromptCleaner, check_tokenizer, load_tokenizer
from prdp.types import Float64, UInt8

FILES = {"2.0": "HPS_v2_compressed.pt", "2.1": "HPS_v2.1_compressed.pt"}


class HPSv2:
    """Cosine of image and prompt, about 0.2 to 0.35 for photographs and paintings; never multiplied by 100.

    Args:
        path: the checkpoint file, a folder that holds it, or the hub repository.
        release: '2.0' (the PRDP paper's) or '2.1'; decides the file's name and the reward's name, since the files
            themselves do not tell.
        tokenizer: a folder with CLIP's tokenizer, such as tokenizer/ of Stable Diffusion 1.x, or a hub id.
        device, dtype, batch_size, memory_mib: see `prdp.rewards.clip_model.ClipScorer`.

    Raises:
        ValueError: what `check` raises.
    """

    def __init__(
        self,
        path: str,
        release: str = "2.0",
        tokenizer: str = CLIP_TOKENIZER,
        device: str = "auto",
        dtype: str = "float32",
        batch_size: int | None = None,
        memory_mib: float | None = None,
    ) -> None:
        weights = weights_from_open_clip("path", path, _file_name(release))
        assert weights is not None
        self.name = "hpsv2" if str(release) == "2.0" else f"hpsv{release}"
        self.version = weights_version([weights.file], dtype)
        self._clip = ClipScorer(
            self.name,
            weights,
            load_tokenizer("tokenizer", tokenizer, "CLIPTokenizer", weights.vocabulary),
            device,
            dtype,
            batch_size,
            memory_mib,
            pixels=lambda images: long_side_pixels(images, weights.size),
            clean=PromptCleaner(self.name),
        )

    @classmethod
    def check(cls, path: str, release: str = "2.0", tokenizer: str = CLIP_TOKENIZER, **settings: Any) -> None:
        """Find the files and compare names and shapes of the tensors, without loading them.

        Raises:
            ValueError: naming the argument, the file and what is wrong with it.
        """
        check_settings(**settings)
        weights = weights_from_open_clip("path", path, _file_name(release), fetch=False)
        if weights is not None:
            weights.model()
        check_tokenizer("tokenizer", tokenizer)

    def score(self, images: UInt8, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Float64:
        """Cosines, float64 [B], of uint8 images [B, H, W, 3] of any size."""
        check_batch(images, prompts, metadata)
        return self._clip.cosines(images, prompts)


def _file_name(release: str) -> str:
    if str(release) not in FILES:
        raise ValueError(f"release={release}: must be {' or '.join(FILES)}")
    return FILES[str(release)]
