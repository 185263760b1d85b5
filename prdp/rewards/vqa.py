"""VQA alignment: how many questions about the prompt's content a model answers rightly from the image (TIFA, DSG)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prdp.rewards.batching import Batches, choose_device
from prdp.rewards.clip_model import check_settings, weights_version
from prdp.rewards.pixels import check_batch
from prdp.rewards.vqa_models import check_answer_model, load_answer_model, says
from prdp.rewards.vqa_questions import Question, questions_of, with_dependencies
from prdp.types import Float64, UInt8

METHODS = ("probability", "choice", "generate")
CODE_VERSION = "2"


class VQAAlignment:
    """Mean over the prompt's questions, in [0, 1], with dependencies as in DSG.

    Sub-scores: `with_dependencies` (DSG's mean, the score itself) and `without_dependencies` (TIFA's).

    Args:
        path: BLIP-VQA or any image-text-to-text model of transformers, a folder or a hub id.
        method: what a question is worth. 'probability': the probability of the right one of its choices, which tells
            images of a group apart; 'choice': 1 if it is the most probable; 'generate': 1 if the model, free to say
            anything, names it. TIFA maps free answers to choices by sentence embeddings; here one that names none, or
            several, is wrong.
        cascade: whether a question that was set to 0 sets those that build on it to 0, too (DPG-Bench); otherwise
            only a wrong answer does (DSG).
        device, dtype, batch_size, memory_mib: see `prdp.rewards.clip_model.ClipScorer`; a batch counts questions.

    Raises:
        ValueError: what `check` raises.
    """

    name = "vqa"
    sub_score_names: tuple[str, ...] = ("with_dependencies", "without_dependencies")

    def __init__(
        self,
        path: str,
        method: str = "probability",
        cascade: bool = False,
        device: str = "auto",
        dtype: str = "float32",
        batch_size: int | None = None,
        memory_mib: float | None = None,
    ) -> None:
        _check_method(method)
        check_settings(device, dtype, batch_size, memory_mib)
        self._method, self._cascade = method, cascade
        self._model, files = load_answer_model("path", path, choose_device(self.name, device), dtype)
        self.version = f"{weights_version(files, dtype, code=CODE_VERSION)}-{method}{'-cascade' if cascade else ''}"
        self._batches = Batches(self.name, batch_size, memory_mib, image_mib=256.0)

    @classmethod
    def check(cls, path: str, method: str = "probability", cascade: bool = False, **settings: Any) -> None:
        """Check the arguments and the files without loading them.

        Raises:
            ValueError: naming the argument, the file and what is wrong with it.
        """
        _check_method(method)
        check_settings(**settings)
        check_answer_model("path", path)

    @staticmethod
    def check_prompt(prompt: str, metadata: Mapping[str, Any]) -> None:
        """Raises ValueError for a prompt whose metadata holds no questions, or bad ones."""
        questions_of(prompt, metadata)

    def score(
        self, images: UInt8, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> tuple[Float64, dict[str, Float64]]:
        """Scores and sub-scores, float64 [B] each, of uint8 images [B, H, W, 3] of any size.

        Raises:
            ValueError: a prompt whose metadata holds no questions; see `prdp.rewards.vqa_questions.questions_of`.
        """
        check_batch(images, prompts, metadata)
        asked = [questions_of(prompt, entry) for prompt, entry in zip(prompts, metadata, strict=True)]
        flat = [question for questions in asked for question in questions]
        owner = np.repeat(np.arange(len(images)), [len(questions) for questions in asked])
        correct = self._batches.map(lambda part: self._correct(images[owner[part]], flat[part]), len(flat))
        per_image = [correct[owner == row] for row in range(len(images))]
        plain = np.array([values.mean() for values in per_image])
        dependent = np.array(
            [np.mean(with_dependencies(*pair, self._cascade)) for pair in zip(asked, per_image, strict=True)],
            dtype=np.float64,
        )
        return dependent, dict(zip(self.sub_score_names, (dependent, plain), strict=True))

    def _correct(self, images: UInt8, questions: Sequence[Question]) -> Float64:
        right = [question.choices.index(question.answer) for question in questions]
        if self._method == "generate":
            answers = zip(self._model.answers(images, questions), questions, strict=True)
            return np.array([float(says(answer, question) == question.answer) for answer, question in answers])
        chances = self._model.probabilities(images, questions)
        if self._method == "choice":
            return np.array([float(row.argmax() == place) for row, place in zip(chances, right, strict=True)])
        return np.array([row[place] for row, place in zip(chances, right, strict=True)])


def _check_method(method: str) -> None:
    if method not in METHODS:
        raise ValueError(f"method={method}: must be {', '.join(METHODS[:-1])} or {METHODS[-1]}")
