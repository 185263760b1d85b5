"""A student draws, and what a scorer thinks little of is drawn once more, by the teacher or itself.

"Your Student is Better Than Expected", Starodubcev et al., CVPR 2024, arXiv:2312.10835, algorithm 1: the teacher is
asked where the score is below a threshold; a score that ties with it keeps the student's image.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import numpy as np

from prdp.calibration import Threshold
from prdp.collaboration.prompt_estimator import PromptEstimator
from prdp.diffusion.process import Process
from prdp.diffusion.redrawing import RedrawingSampler
from prdp.diffusion.refinement import rollback
from prdp.diffusion.sampler import Start
from prdp.support.rules import Share, one_of
from prdp.types import Bool, Float64, Int64, PromptBatch, Rollout, UInt8, Weights

STRATEGIES = ("refine", "regenerate", "redraw", "skip")
ROUTERS = ("score", "random")
FINAL_LATENTS = "final_latents"
_DOMAIN = 0x726F757465
_GRID = 1000
"""Times that a level of noise is looked up among."""


@dataclass
class Strategy:
    """What becomes of images below the threshold."""

    name: Annotated[str, one_of(*STRATEGIES)] = "refine"
    """refine: the teacher goes on from the student's image, noised anew; regenerate: the teacher draws from noise;
    redraw: the student draws once more, and the better of its two images is kept; skip: what the student's score is
    expected to be is told from the prompt, and where that is low the teacher draws instead of it."""
    rollback_strength: Share | None = None
    """Of refine: how far the image is noised, as a share of the training timesteps."""
    rollback_variance: Share | None = None
    """The same as the variance of the noise, the sigma of the paper's algorithm; give one of the two."""
    router: Annotated[str, one_of(*ROUTERS)] = "score"
    """score: by the threshold; random: as many images by chance, to compare with."""


def strategy_problems(strategy: Strategy, key: str = "strategy") -> list[str]:
    """What of a strategy does not fit together, a line each."""
    given = [name for name in ("rollback_strength", "rollback_variance") if getattr(strategy, name) is not None]
    if strategy.name != "refine" and given:
        return [f"{key}.{given[0]}: needs {key}.name=refine (given {strategy.name})"]
    if strategy.name == "refine" and len(given) != 1:
        told = " and ".join(f"{key}.{name}={getattr(strategy, name):g}" for name in given) or "neither"
        return [f"{key}: give one of {key}.rollback_strength and {key}.rollback_variance (given {told})"]
    return []


def strength_of(strategy: Strategy, process: Process) -> float:
    """The share of the training timesteps that refine goes back; a variance is looked up in the process."""
    if strategy.rollback_variance is None:
        assert strategy.rollback_strength is not None
        return strategy.rollback_strength
    shares = np.arange(1, _GRID + 1) / _GRID
    times = np.array([process.time_at(1.0 - share) for share in shares])
    variances = process.noise_level(times) ** 2
    return float(shares[min(int(np.searchsorted(variances, strategy.rollback_variance)), _GRID - 1)])


class Scorer(Protocol):
    """`prdp.cluster.base.RewardWorker`."""

    def score(
        self, images: UInt8, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]], where: str
    ) -> tuple[Float64, dict[str, Float64]]: ...


class CascadeSampler:
    """A sampler like any other, for evaluations and sets of images.

    Args:
        student: with a recorder that keeps final latents.
        teacher: of refine with as many steps in all as `rollback` says; not asked by redraw.
        scorer: the estimator.
        threshold: of its scores of the student's images; those that it chooses are drawn once more.
        strategy: how.
        first: of refine, the step that the teacher goes on from.
        expected: of skip, tells scores from prompts.
        edited: of `edit`, the steps that student and teacher begin at; None where pictures are not begun with, but read
            by a ControlNet, which both have.
    """

    def __init__(
        self,
        student: RedrawingSampler,
        teacher: RedrawingSampler,
        scorer: Scorer,
        threshold: Threshold,
        strategy: Strategy,
        first: int = 0,
        expected: PromptEstimator | None = None,
        edited: tuple[int, int] | None = None,
    ) -> None:
        self._student, self._teacher, self._scorer, self._expected = student, teacher, scorer, expected
        self._threshold, self._strategy, self._first, self._edited = threshold, strategy, first, edited

    @property
    def holds(self) -> tuple[int, str]:
        """Of the student."""
        return self._student.holds

    def load_weights(self, weights: Weights) -> tuple[int, str]:
        """Both are finished models; see `Sampler.load_weights`."""
        self._teacher.load_weights(weights)
        return self._student.load_weights(weights)

    def sample(self, prompts: PromptBatch, images_per_prompt: int, seed: int, trajectory: bool = True) -> Rollout:
        """See `Sampler.sample`; with `trajectory` the final latents are kept. `network_passes` are those that each
        image took; scoring takes none.
        """
        if self._strategy.name == "skip":
            return self._instead(prompts, images_per_prompt, seed, trajectory)
        drawn = self._student.sample(prompts, images_per_prompt, seed, trajectory=True)
        return self._improved(drawn, seed, trajectory)

    def edit(self, prompts: PromptBatch, images_per_prompt: int, seed: int, pictures: UInt8) -> Rollout:
        """Image to image, see `RedrawingSampler.edit`: student and teacher begin with the pictures, but that a refining
        teacher goes on from what the student has made of them. Or both draw by a ControlNet, see its `controlled`.
        """
        if self._strategy.name == "skip":
            return self._instead(prompts, images_per_prompt, seed, True, pictures)
        if self._edited is None:
            drawn = self._student.controlled(prompts, images_per_prompt, seed, pictures)
        else:
            drawn = self._student.edit(prompts, images_per_prompt, seed, pictures, self._edited[0])
        return self._improved(drawn, seed, True, pictures)

    def _improved(self, drawn: Rollout, seed: int, trajectory: bool, pictures: UInt8 | None = None) -> Rollout:
        """The student's images, and in the place of those that are chosen what the strategy makes of them."""
        prompts, images_per_prompt = drawn.prompts, drawn.images_per_prompt
        images, latents = np.array(drawn.images), np.array(drawn.stored[FINAL_LATENTS])
        assert drawn.network_passes is not None
        passes = drawn.network_passes.copy()
        scores = self._scores(drawn, images, np.arange(len(drawn)))
        rows = np.flatnonzero(self._chosen(prompts, images_per_prompt, scores, seed))
        if len(rows):
            name = self._strategy.name
            sampler = self._student if name == "redraw" else self._teacher
            start = self._begun(sampler, pictures, images_per_prompt, rows)
            if name == "refine":
                start = latents[rows], self._first
            again = sampler.again(prompts, images_per_prompt, seed, rows, start, control=self._read(pictures))
            passes[rows] += again.network_passes
            better = np.ones(len(rows), np.bool_)
            if name == "redraw":
                better = self._scores(drawn, again.images, rows) > scores[rows]
            images[rows[better]], latents[rows[better]] = again.images[better], again.latents[better]
        return dataclasses.replace(
            drawn,
            images=images,
            stored={FINAL_LATENTS: latents} if trajectory else {},
            conditions=drawn.conditions if trajectory else {},
            empty_conditions=drawn.empty_conditions if trajectory else {},
            network_passes=passes,
        )

    def _read(self, pictures: UInt8 | None) -> UInt8 | None:
        """The pictures, if they are a ControlNet's."""
        return pictures if self._edited is None else None

    def _begun(
        self, sampler: RedrawingSampler, pictures: UInt8 | None, images_per_prompt: int, rows: Int64
    ) -> Start | None:
        """What images begin with: their pictures, or, without any, noise."""
        if pictures is None or self._edited is None:
            return None
        first = self._edited[0 if sampler is self._student else 1]
        places, which = np.unique(rows // images_per_prompt, return_inverse=True)
        return sampler.latents_of(pictures[places])[which], first

    def _scores(self, drawn: Rollout, images: UInt8, rows: Int64) -> Float64:
        texts, metadata = drawn.image_prompts, drawn.image_metadata
        first, size = drawn.prompts.offset, len(drawn.prompts)
        where = f"the cascade's estimator, prompts {first} to {first + size - 1}"
        return self._scorer.score(images, [texts[row] for row in rows], [metadata[row] for row in rows], where)[0]

    def _instead(
        self,
        prompts: PromptBatch,
        images_per_prompt: int,
        seed: int,
        trajectory: bool,
        pictures: UInt8 | None = None,
    ) -> Rollout:
        """Each image by the student or by the teacher, of the noise that either would draw it of."""
        assert self._expected is not None
        begun = time.perf_counter()
        conditions = self._student.encode(prompts.texts)
        scores = np.repeat(self._expected.scores(conditions), images_per_prompt)
        asked = self._chosen(prompts, images_per_prompt, scores, seed)
        parts = []
        for sampler, rows in ((self._student, np.flatnonzero(~asked)), (self._teacher, np.flatnonzero(asked))):
            if len(rows):
                start = self._begun(sampler, pictures, images_per_prompt, rows)
                read = self._read(pictures)
                parts.append((rows, sampler.again(prompts, images_per_prompt, seed, rows, start, False, read)))
        order = np.argsort(np.concatenate([rows for rows, _ in parts]))
        fields, empty = conditions.to_arrays() if trajectory else ({}, {})
        version, checksum = self._student.holds
        return Rollout(
            prompts=prompts,
            images_per_prompt=images_per_prompt,
            images=np.concatenate([part.images for _, part in parts])[order],
            weights_version=version,
            weights_checksum=checksum,
            stored={FINAL_LATENTS: np.concatenate([part.latents for _, part in parts])[order]} if trajectory else {},
            conditions=fields,
            empty_conditions=empty,
            seconds={"sample": time.perf_counter() - begun},
            network_passes=np.concatenate([np.full(len(rows), part.network_passes) for rows, part in parts])[order],
        )

    def _chosen(self, prompts: PromptBatch, images_per_prompt: int, scores: Float64, seed: int) -> Bool:
        """bool [n]: which images are not to be the student's."""
        if self._strategy.router == "score":
            return np.asarray(self._threshold.chooses(scores), np.bool_)
        places = range(prompts.offset, prompts.offset + len(prompts))
        chance = [
            np.random.default_rng((_DOMAIN, seed, prompts.epoch, prompt, number)).random()
            for prompt in places
            for number in range(images_per_prompt)
        ]
        return np.array(chance) < self._threshold.rate


def teacher_steps(strategy: Strategy, steps: int, process: Process) -> tuple[int, int]:
    """(steps of the teacher's whole chain, step to begin at), so that `steps` are taken."""
    return rollback(steps, strength_of(strategy, process)) if strategy.name == "refine" else (steps, 0)
