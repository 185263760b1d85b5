"""Cascades among the models of an evaluation: their parts, and the sampler that they are together."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from prdp.calibration import Threshold, load
from prdp.cluster.base import RewardWorker
from prdp.collaboration.cascade import CascadeSampler
from prdp.collaboration.cascade_files import CASCADE_FILE, ESTIMATOR_FILE, THRESHOLD_FILE, Cascade, read_cascade
from prdp.collaboration.prompt_estimator import load_estimator
from prdp.config import SamplerConfig
from prdp.evaluation.models import EvaluatedModel, find_models, model_digest
from prdp.evaluation.trust import more_than_data
from prdp.evidence.denoising import FinalLatents
from prdp.rewards.base import identity_of
from prdp.support.errors import ConfigError


def check_reward_of(folder: Path, reward: Any) -> None:
    """Refuse the estimator of a cascade that is more than data: a cascade may come from anybody.

    Raises:
        ConfigError: names what it would run or contact.
    """
    wishes = more_than_data(folder, "reward", reward)
    if wishes:
        told = "\n".join(f"  {wish}" for wish in wishes)
        raise ConfigError(f"{folder / CASCADE_FILE}: its estimator must be a reward of this package:\n{told}")


def parts_of(cascade: Cascade) -> tuple[EvaluatedModel, EvaluatedModel]:
    """The student and the teacher."""
    student, teacher = (
        find_models([f"{name}:{part.entry}"], cascade.base)[0]
        for name, part in (("student", cascade.student), ("teacher", cascade.teacher))
    )
    return student, teacher


def threshold_of(folder: Path, cascade: Cascade) -> Threshold:
    """The threshold, if student and all else are what it was fitted on.

    Raises:
        StartError: it was fitted on something else; names what differs.
    """
    return load(folder / THRESHOLD_FILE, cascade.digests(model_digest(parts_of(cascade)[0])))


def build_cascade_sampler(
    folder: Path, dtype: str, device: str, autocast: str | None, work: SamplerConfig
) -> CascadeSampler:
    """The sampler of a cascade's folder; see `prdp.evaluation.loading.build_evaluated_sampler`.

    Args:
        work: images per network call.
    """
    from prdp.evaluation.loading import build_plain_sampler

    cascade = read_cascade(folder)
    check_reward_of(folder, cascade.reward)
    student, teacher = (
        build_plain_sampler(
            model,
            dataclasses.replace(part.sampler, microbatch=work.microbatch),
            dtype,
            device,
            autocast,
            kl=False,
            recorder=FinalLatents(),
        )
        for model, part in zip(parts_of(cascade), (cascade.student, cascade.teacher), strict=True)
    )
    scorer = RewardWorker(dict(cascade.reward))
    threshold = threshold_of(folder, dataclasses.replace(cascade, scorer=identity_of(scorer.reward)))
    expected = None if cascade.expected is None else load_estimator(folder / ESTIMATOR_FILE, cascade.expected)
    return CascadeSampler(student, teacher, scorer, threshold, cascade.strategy, cascade.first, expected)
