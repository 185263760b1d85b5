"""Does the picture spell what its prompt quotes? Read by an OCR engine whose weights come with its package."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from prdp.rewards.dependencies import require
from prdp.rewards.pixels import check_batch
from prdp.types import Float64, UInt8

INSTALL = "prdp[ocr]"
CODE_VERSION = "1"
_QUOTED = re.compile('"([^"]+)"|\u201c([^\u201d]+)\u201d')


class Ocr:
    """1 - edit distance / length of the text in double quotes, as in Flow-GRPO's task (arXiv 2505.05470).

    White space and letter case do not count. What the picture has beside the text costs nothing where the text is all
    there, and no picture has less than 0. Several quotations of a prompt are one text, where Flow-GRPO takes the first.

    Raises:
        MissingDependencyError: rapidocr-onnxruntime is not installed.
    """

    name = "ocr"
    sub_score_names: ClassVar[tuple[str, ...]] = ("spelled",)

    def __init__(self) -> None:
        self.check()
        from importlib.metadata import version

        import rapidocr_onnxruntime  # type: ignore[import-untyped, import-not-found, unused-ignore]

        threads = int(os.environ.get("OMP_NUM_THREADS", "0")) or -1
        self._engine = rapidocr_onnxruntime.RapidOCR(intra_op_num_threads=threads)
        self.version = f"{CODE_VERSION}-rapidocr{version('rapidocr-onnxruntime')}"

    @classmethod
    def check(cls) -> None:
        """Raises MissingDependencyError where the engine is not installed."""
        require(cls.name, "rapidocr_onnxruntime", install=INSTALL)

    @staticmethod
    def check_prompt(prompt: str, metadata: Mapping[str, Any]) -> None:
        """Raises ValueError for a prompt that quotes nothing."""
        quoted(prompt)

    def score(
        self, images: UInt8, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> tuple[Float64, dict[str, Float64]]:
        """Rewards in [0, 1] and whether all is spelled, 0 or 1, float64 [B] each, of uint8 images [B, H, W, 3].

        Raises:
            ValueError: a prompt that quotes nothing.
        """
        check_batch(images, prompts, metadata)
        wanted = [quoted(prompt) for prompt in prompts]
        values = np.array([spelling(self.read(image), text) for image, text in zip(images, wanted, strict=True)])
        return values, {"spelled": (values == 1).astype(np.float64)}

    def read(self, image: UInt8) -> str:
        """The text of an image [H, W, 3], from the top down; '' where there is none."""
        found, _ = self._engine(np.ascontiguousarray(image[:, :, ::-1]))  # it takes blue, green, red
        return " ".join(text for _, text, _ in found or [])


def quoted(prompt: str) -> str:
    """The text between double quotes, straight or curly; of several all, with a space between them.

    Raises:
        ValueError: there is none.
    """
    found = [straight or curly for straight, curly in _QUOTED.findall(prompt)]
    if not _bare(" ".join(found)):
        raise ValueError(
            f"prompt {prompt!r} quotes no text: reward=ocr asks whether the picture spells what stands in double quotes"
        )
    return " ".join(found)


def spelling(read: str, wanted: str) -> float:
    """How much of a text was read: 1 - min(edit distance, length) / length, without white space and case; in [0, 1].

    Args:
        read: what the picture says.
        wanted: what it should say.
    """
    there, text = _bare(read), _bare(wanted)
    if text in there:
        return 1.0
    return 1.0 - min(edit_distance(there, text), len(text)) / len(text)


def edit_distance(first: str, second: str) -> int:
    """Levenshtein's: the least number of letters to put in, take out or replace."""
    row = list(range(len(second) + 1))
    for number, letter in enumerate(first, 1):
        above, row[0] = row[0], number
        for place, other in enumerate(second, 1):
            above, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, above + (letter != other))
    return row[-1]


def _bare(text: str) -> str:
    return re.sub(r"\s+", "", text).casefold()
