"""Cascades among the models of an evaluation: their parts, and the sampler that they are together."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prdp.calibration import Threshold, load
from prdp.cluster.base import RewardWorker
from prdp.collaboration.cascade import CascadeSampler
from prdp.collaboration.cascade_files import CASCADE_FILE, ESTIMATOR_FILE, THRESHOLD_FILE, Cascade, read_cascade
from prdp.collaboration.prompt_estimator import load_estimator
from prdp.config import SamplerConfig
from prdp.diffusion.refinement import rollback
from prdp.evaluation.models import EvaluatedModel, find_models, model_digest
from prdp.evaluation.samplers import network_passes
from prdp.evaluation.trust import more_than_data
from prdp.evidence.denoising import FinalLatents
from prdp.rewards.base import identity_of
from prdp.support.errors import ConfigError


@dataclass(frozen=True)
class Given:
    """What becomes of pictures that a model is given.

    Attributes:
        strength: share of the training timesteps that they are noised by, before the model draws; None for noise alone.
        control: folder of a ControlNet that reads them; None for none.
        scale: that what it adds is multiplied by.
    """

    strength: float | None = None
    control: str | None = None
    scale: float = 1.0


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


def passes_of(cascade: Cascade) -> tuple[int, int]:
    """Passes of the network for an image that is the student's first one, and for one that is drawn in its place."""
    teacher = cascade.teacher.sampler
    student = network_passes(cascade.student.sampler)
    again = network_passes(dataclasses.replace(teacher, steps=teacher.steps - cascade.first))
    if cascade.strategy.name == "skip":
        return student, again
    return student, student + (student if cascade.strategy.name == "redraw" else again)


def build_cascade_sampler(
    folder: Path, dtype: str, device: str, autocast: str | None, work: SamplerConfig, given: Given | None = None
) -> CascadeSampler:
    """The sampler of a cascade's folder; see `prdp.evaluation.loading.build_evaluated_sampler`.

    Args:
        work: images per network call.
        given: of `CascadeSampler.edit`, what becomes of pictures; None for a sampler that is given none.
    """
    from prdp.evaluation.loading import build_plain_sampler

    cascade = read_cascade(folder)
    check_reward_of(folder, cascade.reward)
    samplers, edited = editing_parts(cascade, None if given is None else given.strength)
    student, teacher = (
        build_plain_sampler(
            model,
            dataclasses.replace(own, microbatch=work.microbatch),
            dtype,
            device,
            autocast,
            kl=False,
            recorder=FinalLatents(),
        )
        for model, own in zip(parts_of(cascade), samplers, strict=True)
    )
    if given is not None and given.control is not None:
        for one in (student, teacher):
            one.put_control(given.control, given.scale)
    scorer = RewardWorker(dict(cascade.reward))
    threshold = threshold_of(folder, dataclasses.replace(cascade, scorer=identity_of(scorer.reward)))
    expected = None if cascade.expected is None else load_estimator(folder / ESTIMATOR_FILE, cascade.expected)
    return CascadeSampler(student, teacher, scorer, threshold, cascade.strategy, cascade.first, expected, edited)


def editing_parts(
    cascade: Cascade, strength: float | None
) -> tuple[tuple[SamplerConfig, SamplerConfig], tuple[int, int] | None]:
    """Samplers of student and teacher whose chains are long enough to begin within, and the steps to begin at; None
    where they begin with noise.

    A refining teacher goes on from the student's image, so that its chain stays as it is.
    """
    if strength is None:
        return (cascade.student.sampler, cascade.teacher.sampler), None
    parts = []
    for part, refines in ((cascade.student, False), (cascade.teacher, cascade.strategy.name == "refine")):
        if refines:
            parts.append((part.sampler, 0))
        else:
            total, first = rollback(part.sampler.steps, strength)
            parts.append((dataclasses.replace(part.sampler, steps=total), first))
    (student, first), (teacher, second) = parts
    return (student, teacher), (first, second)
