"""BLIP-VQA, T2I-CompBench's measure of attribute binding: is each thing of the prompt there as the prompt has it?"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from prdp.rewards.batching import Batches, choose_device
from prdp.rewards.clip_model import check_settings, weights_version
from prdp.rewards.dependencies import MissingDependencyError, require
from prdp.rewards.pixels import check_batch
from prdp.rewards.vqa_models import check_blip, load_blip
from prdp.types import Float64, UInt8

PARSER = "en_core_web_sm"
INSTALL = "prdp[noun_phrases]"
CODE_VERSION = "1"
NO_THINGS = ("top", "the side", "the left", "the right")
MOST = 8
_LEFT_OUT = re.compile(r"[.!\"()*#:;~]")


class BlipVQA:
    """Product over a prompt's noun phrases of the probability that BLIP answers yes to '<phrase>?', in [0, 1].

    As in T2I-CompBench (Huang et al., 2023): the first 8 noun chunks that spaCy's en_core_web_sm finds, without those
    that are places in the picture, and yes against no as the first word of the answer. A prompt's metadata may say
    "noun_phrases" itself, as a list of texts; spaCy is then not asked. A prompt without any gets 1.

    Args:
        path: BLIP-VQA of transformers, a folder or a hub id.
        device, dtype, batch_size, memory_mib: see `prdp.rewards.clip_model.ClipScorer`; a batch counts questions.

    Raises:
        ValueError: what `check` raises.
    """

    name = "blip_vqa"

    def __init__(
        self,
        path: str,
        device: str = "auto",
        dtype: str = "float32",
        batch_size: int | None = None,
        memory_mib: float | None = None,
    ) -> None:
        check_settings(device, dtype, batch_size, memory_mib)
        self._model, files = load_blip("path", path, choose_device(self.name, device), dtype)
        self.version = weights_version(files, dtype, code=CODE_VERSION)
        self._batches = Batches(self.name, batch_size, memory_mib, image_mib=256.0)

    @classmethod
    def check(cls, path: str, **settings: Any) -> None:
        """Check the arguments and the files without loading them.

        Raises:
            ValueError: naming the argument, the file and what is wrong with it.
        """
        check_settings(**settings)
        check_blip("path", path)

    @classmethod
    def check_prompt(cls, prompt: str, metadata: Mapping[str, Any]) -> None:
        """Raises ValueError for noun phrases that are no texts, or that nothing here can find."""
        if _given(prompt, metadata) is None:
            _check_parser()

    def score(self, images: UInt8, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Float64:
        """Scores, float64 [B], of uint8 images [B, H, W, 3] of any size.

        Raises:
            ValueError: what `check_prompt` raises.
        """
        check_batch(images, prompts, metadata)
        asked = [questions(prompt, entry) for prompt, entry in zip(prompts, metadata, strict=True)]
        flat = [question for row in asked for question in row]
        owner = np.repeat(np.arange(len(images)), [len(row) for row in asked])
        scores = np.ones(len(images))
        if flat:
            chances = self._batches.map(
                lambda part: self._model.chances_of_yes(images[owner[part]], flat[part]), len(flat)
            )
            np.multiply.at(scores, owner, chances)
        return scores


def questions(prompt: str, metadata: Mapping[str, Any]) -> list[str]:
    """What is asked of a prompt's pictures, as BLIP's own code prepares a question.

    Raises:
        ValueError: what `BlipVQA.check_prompt` raises.
    """
    phrases = _given(prompt, metadata)
    if phrases is None:
        _check_parser()
        phrases = [chunk.text for chunk in _parser()(prompt).noun_chunks]
    asked = [phrase for phrase in phrases if phrase not in NO_THINGS][:MOST]
    return [_LEFT_OUT.sub("", f"{phrase}?".lower()).rstrip(" ") for phrase in asked]


def _given(prompt: str, metadata: Mapping[str, Any]) -> list[str] | None:
    phrases = metadata.get("noun_phrases")
    if phrases is None:
        return None
    if (
        isinstance(phrases, str)
        or not isinstance(phrases, Sequence)
        or not all(isinstance(one, str) for one in phrases)
    ):
        raise ValueError(f"prompt {prompt!r}: noun_phrases={phrases!r} of its metadata must be a list of texts")
    return list(phrases)


def _check_parser() -> None:
    """Raises MissingDependencyError where spaCy or its model is not installed."""
    if require(BlipVQA.name, "spacy", install=INSTALL) and importlib.util.find_spec(PARSER) is None:
        raise MissingDependencyError(
            f"reward '{BlipVQA.name}' needs spaCy's model {PARSER}: python -m spacy download {PARSER}; or give the "
            'phrases of every prompt in its metadata, as "noun_phrases": ["a red bench", "a blue bowl"]'
        )


@cache
def _parser() -> Any:
    import spacy  # type: ignore[import-not-found, unused-ignore]

    return spacy.load(PARSER)
