"""Prompts as tokens, with a word said when some of them are cut."""

from __future__ import annotations

import html
import importlib.util
import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prdp.rewards.weight_files import find_folder

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)

CLIP_TOKENIZER = "openai/clip-vit-large-patch14"
BERT_TOKENIZER = "google-bert/bert-base-uncased"
_FILES = (("tokenizer.json", "tokenizer_config.json"), ("vocab.*", "merges.txt", "tokenizer_config.json"))


class PromptTokens:
    """Turns prompts into token ids; what exceeds `limit` tokens is cut, counted, and warned about once.

    Attributes:
        cut: how many prompts have been cut so far, repetitions included.
    """

    def __init__(self, reward: str, tokenizer: Any, limit: int) -> None:
        self.cut = 0
        self._reward = reward
        self._tokenizer = tokenizer
        self._limit = limit

    def __call__(self, prompts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask (1 where there is a token), both int64 [B, longest], padded on the right."""
        import torch

        rows = self._tokenizer(list(prompts), truncation=False, padding=False, verbose=False)["input_ids"]
        long = sum(len(row) > self._limit for row in rows)
        if long and not self.cut:
            _log.warning(
                "reward '%s': %d of %d prompts have more than %d tokens; what is beyond plays no part in the score "
                "(said once, for the first of them)", self._reward, long, len(rows), self._limit,
            )
        self.cut += long
        rows = [row if len(row) <= self._limit else [*row[: self._limit - 1], row[-1]] for row in rows]
        longest = max(map(len, rows))
        padding = self._tokenizer.pad_token_id or 0
        ids = torch.tensor([[*row, *[padding] * (longest - len(row))] for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        return ids, mask


class PromptCleaner:
    """The cleaning of openai/CLIP's and open_clip's own tokenizers: HTML entities, and ftfy for broken Unicode.

    transformers' tokenizers leave both out. Where ftfy is not installed, prompts that it could change are left as they
    are and warned about once; prompts of ASCII without '&' are never changed by it.
    """

    def __init__(self, reward: str) -> None:
        self._reward = reward
        self._has_ftfy = importlib.util.find_spec("ftfy") is not None
        self._warned = False

    def __call__(self, prompt: str) -> str:
        """The prompt as these tokenizers see it, but for its white space and its case."""
        if prompt.isascii() and "&" not in prompt:
            return prompt
        if self._has_ftfy:
            import ftfy  # type: ignore[import-not-found, unused-ignore]

            prompt = ftfy.fix_text(prompt)
        elif not self._warned:
            self._warned = True
            _log.warning(
                "reward '%s': prompts such as %r may be cut into other tokens than by the original package, which "
                "mends them with ftfy: pip install ftfy (said once)", self._reward, prompt,
            )
        return html.unescape(html.unescape(prompt))


def load_tokenizer(key: str, path: str, kind: str, vocabulary: int) -> Any:
    """A tokenizer of transformers from a folder or the hub.

    Args:
        key: of the configuration, for messages.
        path: a folder with tokenizer.json, or vocab.json and merges.txt (CLIP), or vocab.txt (BERT); or a hub id.
        kind: name of its class in transformers.
        vocabulary: number of token embeddings of the model.

    Raises:
        ValueError: no such tokenizer, one that cannot be read, or one with more tokens than the model knows.
    """
    import transformers

    check_tokenizer(key, path)
    try:
        tokenizer = getattr(transformers, kind).from_pretrained(os.path.expanduser(path))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{key}={path}: the tokenizer cannot be read: {error}") from error
    largest = max(tokenizer.get_vocab().values())
    if largest >= vocabulary:
        raise ValueError(
            f"{key}={path}: the tokenizer's ids go up to {largest}, but the model has {vocabulary} token embeddings: "
            "it is another model's"
        )
    return tokenizer


def check_tokenizer(key: str, path: str) -> None:
    """Raise ValueError unless the folder, or the cached folder of the hub, holds the files of a tokenizer."""
    folder = find_folder(key, path, _FILES, fetch=False)
    if folder is None:
        return
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "vocab.txt")):
        raise ValueError(f"{key}={path}: {folder} holds no tokenizer.json, no vocab.json and no vocab.txt")
