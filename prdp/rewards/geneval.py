"""GenEval (Ghosh et al., 2023): objects, counts, colours and positions, by a detector and CLIP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from prdp.rewards.batching import Batches, choose_device
from prdp.rewards.clip_model import ClipScorer, check_settings, weights_from_folder, weights_version
from prdp.rewards.geneval_rule import (
    COLORS,
    Detection,
    check_metadata,
    confident,
    correctness,
    least_confidence,
)
from prdp.rewards.object_detectors import check_detector, load_detector
from prdp.rewards.pixels import check_batch
from prdp.rewards.prompt_tokens import check_tokenizer, load_tokenizer
from prdp.types import Float64, UInt8

CREDITS = ("partial", "strict")
CODE_VERSION = "1"
TEMPLATES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")
_BACKGROUND = np.full(3, 0x99, np.uint8)


class GenEval:
    """Does a picture have the objects that its prompt asks for, as many, so coloured, so placed?

    What is asked for stands in the prompt's metadata, as in GenEval's `evaluation_metadata.jsonl` (`prompts=geneval`).
    Both credits are sub-scores.

    Args:
        detector: Mask2Former trained on COCO's instances, as the authors use, or OWL-ViT or OWLv2; a folder in
            transformers format, or a hub id.
        clip: names colours of what the detector has cut out; a folder in transformers format, or a hub id. The authors'
            is ViT-L/14 of OpenAI.
        credit: the reward. 'strict' is 1 where all is right, as GenEval counts; 'partial' is the mean credit of all
            that is asked for, which tells images of a group apart.
        device, dtype: see `prdp.rewards.clip_model.ClipScorer`.

    Raises:
        ValueError: what `check` raises.
    """

    name = "geneval"
    sub_score_names: ClassVar[tuple[str, ...]] = CREDITS

    def __init__(
        self,
        detector: str = "facebook/mask2former-swin-small-coco-instance",
        clip: str = "openai/clip-vit-large-patch14",
        credit: str = "partial",
        device: str = "auto",
        dtype: str = "float32",
    ) -> None:
        _check_credit(credit)
        check_settings(device, dtype)
        self._credit = credit
        self._detector, files = load_detector("detector", detector, choose_device(self.name, device), dtype)
        weights = weights_from_folder("clip", clip)
        assert weights is not None
        words = load_tokenizer("clip", str(weights.file.parent), "CLIPTokenizer", weights.vocabulary)
        self._clip = ClipScorer(self.name, weights, words, device, dtype)
        self.version = f"{weights_version([*files, weights.file], dtype, code=CODE_VERSION)}-{credit}"
        self._one_by_one = Batches(self.name, batch_size=1)
        self._colors: dict[str, np.ndarray] = {}

    @classmethod
    def check(
        cls,
        detector: str = "facebook/mask2former-swin-small-coco-instance",
        clip: str = "openai/clip-vit-large-patch14",
        credit: str = "partial",
        **settings: Any,
    ) -> None:
        """Check the arguments and the files without loading them.

        Raises:
            ValueError: naming the argument, the file and what is wrong with it.
        """
        _check_credit(credit)
        check_settings(**settings)
        check_detector("detector", detector)
        weights = weights_from_folder("clip", clip, fetch=False)
        if weights is not None:
            weights.model()
        check_tokenizer("clip", clip)

    @staticmethod
    def check_prompt(prompt: str, metadata: Mapping[str, Any]) -> None:
        """Raises ValueError for a prompt whose metadata does not say what it asks for."""
        check_metadata(prompt, metadata)

    def score(
        self, images: UInt8, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> tuple[Float64, dict[str, Float64]]:
        """Rewards and both credits, float64 [B] each in [0, 1], of uint8 images [B, H, W, 3].

        Raises:
            ValueError: metadata that do not say what is asked for; an object that the detector does not know.
        """
        check_batch(images, prompts, metadata)
        for prompt, one in zip(prompts, metadata, strict=True):
            check_metadata(prompt, one)
            if unknown := self._detector.unknown(_names(one)):
                raise ValueError(f"prompt {prompt!r} asks for {unknown[0]!r}, which the detector does not know")
        table = self._one_by_one.map(lambda part: [self._judged(images[part.start], metadata[part.start])], len(images))
        credits = {"strict": table[:, 0], "partial": table[:, 1]}
        return credits[self._credit], credits

    def _judged(self, image: UInt8, metadata: Mapping[str, Any]) -> tuple[float, float]:
        found = self._detector.detect(image, _names(metadata), least_confidence(metadata))
        colors = partial(self._colors_of, image)
        return correctness(confident(found, metadata), metadata, colors)

    def _colors_of(self, image: UInt8, group: Sequence[Detection], name: str) -> list[str]:
        """The colour of each object, by CLIP's features of what is cut out, on grey where there is a mask."""
        if name not in self._colors:
            texts = [[one.format(color=color, name=name) for one in TEMPLATES] for color in COLORS]
            features = [self._clip.text_features(of_color).mean(axis=0) for of_color in texts]
            self._colors[name] = np.stack([one / np.linalg.norm(one) for one in features])
        cut = [self._clip.image_features(crop(image, one)[None])[0] for one in group]
        return [COLORS[int(np.argmax(self._colors[name] @ one))] for one in cut]


def crop(image: UInt8, detection: Detection) -> UInt8:
    """The part of a picture [H, W, 3] within a detection's box, grey outside of its mask; at least one pixel."""
    shown = image if detection.mask is None else np.where(detection.mask[..., None], image, _BACKGROUND)
    left, top, right, bottom = (round(float(edge)) for edge in detection.box)
    box = (left, top, max(right, left + 1), max(bottom, top + 1))
    return np.asarray(Image.fromarray(shown.astype(np.uint8)).crop(box))


def _names(metadata: Mapping[str, Any]) -> list[str]:
    clauses = [*metadata["include"], *(metadata.get("exclude") or [])]
    return list(dict.fromkeys(clause["class"] for clause in clauses))


def _check_credit(credit: str) -> None:
    if credit not in CREDITS:
        raise ValueError(f"credit={credit}: must be one of {', '.join(CREDITS)}")
