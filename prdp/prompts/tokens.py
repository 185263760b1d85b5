"""How many tokens prompts have, and which ones a text encoder would cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from prdp.diffusion.model_folder import MIXTURES
from prdp.support.json_lines import load_json
from prdp.types import Int64

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from prdp.prompts.stream import PromptStream

SAMPLE = 1000
_BATCH = 4096


@dataclass(frozen=True)
class TokenCounts:
    """Lengths of prompts as a text encoder counts them.

    Attributes:
        counts: int64 [n], tokens with start and end.
        limit: tokens that the encoder takes, start and end among them.
    """

    counts: Int64
    limit: int

    @property
    def cut(self) -> int:
        """Prompts that are longer than the encoder takes."""
        return int((self.counts > self.limit).sum())

    @property
    def lost(self) -> int:
        """Tokens beyond the limit, over all prompts."""
        return int(np.maximum(self.counts - self.limit, 0).sum())

    def sentence(self, what: str) -> str:
        """'3 of the first 1,000 prompts are cut at 77 tokens: ...'; `what` names the prompts counted."""
        if not self.cut:
            return f"none of {what} is longer than the text encoder's {self.limit} tokens"
        return (
            f"{self.cut:,} of {what} are longer than the text encoder's {self.limit} tokens and will be cut: "
            f"{self.lost:,} of {int(self.counts.sum()):,} tokens are lost, the longest has {int(self.counts.max()):,}"
        )


def count_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> TokenCounts:
    """Tokens of each text, nothing cut."""
    from transformers.utils import logging as transformers_logging

    counts: list[int] = []
    before = transformers_logging.get_verbosity()
    # Its warning about long sequences is what is being counted here.
    transformers_logging.set_verbosity_error()
    try:
        for start in range(0, len(texts), _BATCH):
            counts += map(len, tokenizer(list(texts[start : start + _BATCH])).input_ids)
    finally:
        transformers_logging.set_verbosity(before)
    return TokenCounts(np.array(counts, np.int64), int(tokenizer.model_max_length))


def cut_prompts_report(model: str, stream: PromptStream, held_out: Sequence[str]) -> str:
    """What a run says at its start: how many of its next SAMPLE prompts and of the held-out ones will be cut."""
    if model == MIXTURES:
        return "prompts are read whole"
    try:
        tokenizer = load_tokenizer(model, local_files_only=True)  # The model is loaded, so its files are here.
    except ValueError as error:
        return f"prompts that will be cut are not counted: {error}"
    texts = stream.peek(min(SAMPLE, stream.pass_length)).texts
    training = count_tokens(tokenizer, texts).sentence(f"the next {len(texts):,} prompts")
    judging = count_tokens(tokenizer, held_out).sentence(f"the {len(held_out):,} held-out prompts")
    return f"{training}\n{judging}"


def load_tokenizer(model: str, local_files_only: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of `model.path`: a folder in diffusers format, 'shapes', a tokenizer's folder, or a hub id.

    Its length is at most that of the text encoder beside it, where there is one.

    Args:
        model: `model.path`.
        local_files_only: look for a hub id in the cache alone.

    Raises:
        ValueError: no tokenizer there.
    """
    from transformers import AutoTokenizer

    from prdp.diffusion.model_folder import model_location

    location = model_location(model)
    inside = (Path(location) / "tokenizer").is_dir() or not Path(location).exists()
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            location,
            subfolder="tokenizer" if inside else "",
            trust_remote_code=False,
            local_files_only=local_files_only,
        )
        encoder = Path(location) / "text_encoder" / "config.json"
        if encoder.is_file():
            positions = load_json(encoder.read_text(encoding="utf-8")).get("max_position_embeddings")
            tokenizer.model_max_length = min(tokenizer.model_max_length, positions or tokenizer.model_max_length)
        return tokenizer
    except (OSError, ValueError, KeyError, RecursionError) as error:
        raise ValueError(f"model {model}: no tokenizer can be loaded from it: {error}") from error
