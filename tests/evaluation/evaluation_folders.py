"""Evaluations with images and scores made by hand, and what they need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prdp.config import ModelConfig
from prdp.evaluation.models import EvaluatedModel
from prdp.evaluation.settings import EvaluateConfig
from prdp.evaluation.store import Scores, chunks_of
from prdp.evaluation.work import Work
from prdp.types import PromptBatch, Rollout, UInt8

REDNESS = {"_target_": "prdp.rewards.redness.Redness"}
IDENTITY = {"name": "redness", "version": "1"}


def batch(texts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None = None) -> PromptBatch:
    """Prompts in the order of their source."""
    return PromptBatch(0, 0, tuple(texts), tuple(metadata or [{}] * len(texts)), tuple(range(len(texts))))


def rollout_of(prompts: PromptBatch, images: UInt8, images_per_prompt: int) -> Rollout:
    """Images as a sampler would hand them over, without trajectories."""
    return Rollout(prompts, images_per_prompt, images, 0, "", seconds={"sample": 2.0})


def finished_work(
    folder: Path,
    images: Mapping[str, UInt8],
    scores: Mapping[str, Sequence[float]],
    prompts: PromptBatch,
    images_per_prompt: int = 2,
    sub_scores: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
    **settings: Any,
) -> Work:
    """An evaluation of the models named, all on disk: one prompt set 'set', one reward 'redness', seed 0.

    Args:
        images: model -> uint8 [n, H, W, 3]; scores: model -> n numbers.
    """
    from prdp.evaluation.features import Pixels
    from prdp.evaluation.work import space_name

    config = EvaluateConfig(
        models=list(images), rewards={"redness": REDNESS}, output_dir=str(folder), images_per_prompt=images_per_prompt,
        **settings,
    )  # fmt: skip
    chunks = {}
    for model, pictures in images.items():
        places = chunks_of(folder, model, "set", 0, prompts, 1, images_per_prompt, {"model": model})
        for i, chunk in enumerate(places):
            own = slice(i * images_per_prompt, (i + 1) * images_per_prompt)
            chunk.save(rollout_of(chunk.prompts, pictures[own], images_per_prompt))
            chunk.save_features(space_name(Pixels()), Pixels().features(chunk.images()))
            subs = {k: np.array(v[own], np.float64) for k, v in (sub_scores or {}).get(model, {}).items()}
            found = Scores(np.array(scores[model][own], np.float64), subs, 0.5)
            chunk.save_scores("redness", {"identity": IDENTITY, "section": REDNESS}, found)
        chunks[model, "set", 0] = tuple(places)
    config.sampler.prompts_per_chunk = 1
    models = tuple(EvaluatedModel(name, "pipeline", ModelConfig()) for name in images)
    return Work(config, models, {"set": prompts}, chunks)
