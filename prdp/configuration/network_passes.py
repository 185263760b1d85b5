"""Passes of the network that an image costs, by phase and by whose they are, derived from a run's configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from prdp.config import ModelConfig, SamplerConfig, TrainConfig
from prdp.diffusion import family_of
from prdp.diffusion.guidance import guided
from prdp.evidence.base import Evidence, Of
from prdp.learners.precision import evidence_precision, spot_check_size, tells_evidence
from prdp.objectives import Objective, build_objective
from prdp.support.errors import UserError
from prdp.types import Int64


@dataclass(frozen=True)
class ImagePasses:
    """Network passes of one image in one epoch.

    A pass is one latent through the denoising network once, forward; guidance above 1 takes two, but where the network
    takes it as an input.

    Attributes:
        policy: to sample.
        reference: of the reference, while an image is sampled, where the objective compares with it at stored steps.
            Epoch 0 takes none: the policy is its own reference.
        evidence: to learn, without gradient: the policy's evidence where its coefficients are not known before, and
            that of other policies.
        gradient: to learn, forward with a backward pass after it.
    """

    policy: int
    reference: int
    evidence: int
    gradient: int

    @property
    def text(self) -> str:
        """For people."""
        sampling = f"{self.policy:,} to sample" + (f" + {self.reference:,} of the reference" * bool(self.reference))
        return f"{sampling}; {self.gradient:,} with gradient + {self.evidence:,} without to learn"


def image_passes(config: TrainConfig) -> ImagePasses:
    """What an image costs in an epoch after the first, if it is learned from.

    The first update after sampling takes what the sampler has stored of the evidence, and each further one computes it
    first, unless the loss is linear in it, or its coefficients are found in the pass with gradient. Evidence of the
    reference or of an old policy takes a pass more, unless the old policy has the weights of the one that learns; that
    of the policy which an epoch's updates start from does at further updates. Images of sets take no pass to sample.
    Of rollouts that an older policy has drawn, or the frozen start, nothing is known before. What the batch alone tells
    is not counted: images that the loss leaves out, and cells that are clipped. Nor are those of `checked_passes`.
    """
    objective = build_objective(config.objective)
    updates, scale = config.updates_per_epoch, config.sampler.guidance_scale
    branches = branches_of(config.model, scale)
    noisy = noisy_steps(config.sampler)
    told = gradient_tells_evidence(config)
    evidence, channels, linear = objective.evidence, set(objective.channels), set(objective.linear)
    guard = set() if told else {evidence.guard(objective.channels)}
    columns = evidence.columns(config.sampler, noisy)
    group = config.images_per_prompt * columns
    at_once = objective.found_with_gradient(group, config.learner.microbatch, told)

    alike = _alike(config, objective)
    further = {name: of for name, (_, of) in evidence.passes.items() if name in objective.arrays}
    own = _own(config, objective)
    beside = {of: evidence.guidance_of(of) for name, of in evidence.others.items() if name in channels}
    beside_passes = {of: branches if one is None else branches_of(config.model, one) for of, one in beside.items()}
    not_at_first = sum(count for of, count in beside_passes.items() if of in alike and beside[of] in (None, scale))

    known_first = channels <= {*linear, *_sampled(config, evidence), *objective.known_beside(own)}
    known_later = channels <= linear - guard
    of_policy = 0 if at_once else (not known_first) + (updates - 1) * (not known_later)
    found = set(objective.found_beside) if at_once else set()
    """Data that takes no pass in updates whose coefficients are found in the pass with gradient."""
    first = further.keys() - set(own) - (set() if known_first else found)
    later = further.keys() - (set() if known_later else found)
    of_others = len(first) + (updates - 1) * len(later)
    beside_all = updates * sum(beside_passes.values()) - not_at_first
    kept = kept_outputs(config)
    """Whose outputs are made once, where both a pass of their own and the one with gradient take them."""
    once = len({further[name] for name in first} & set(kept) - alike)
    once += (updates - 1) * len({further[name] for name in later} & set(kept))
    drawn, frozen = config.rollouts.source == "sample", config.rollout_policy == "reference"
    reference_steps = 0 if frozen else evidence.reference_passes(config.sampler, noisy, objective.arrays)
    return ImagePasses(
        policy=config.sampler.steps * branches * drawn,
        reference=reference_steps * branches * drawn,
        evidence=columns * ((of_policy + of_others - once) * branches + beside_all),
        gradient=columns * branches * updates,
    )


def precisions(config: TrainConfig) -> tuple[str, str]:
    """Of the pass with gradient, and of evidence."""
    gradient = config.learner.autocast or config.model.dtype
    return gradient, evidence_precision(config.learner.evidence_precision, gradient)


def gradient_tells_evidence(config: TrainConfig) -> bool:
    """See `tells_evidence`."""
    return tells_evidence(*precisions(config))


def checked_passes(config: TrainConfig) -> int:
    """In an epoch after the first, of the few cells by which the error of evidence is measured: by `PrecisionWatch`."""
    from prdp.learners.used_cells import sources

    gradient, precision = precisions(config)
    objective, told = build_objective(config.objective), gradient_tells_evidence(config)
    columns = objective.evidence.columns(config.sampler, noisy_steps(config.sampler))
    passes, before = 0, None
    if objective.evidence.guard(objective.channels) is not None:
        if precision != "float32" or not told:
            others = {of for name, of in objective.evidence.others.items() if name in objective.channels}
            passes = 2 + len(others)
    elif precision != "float32":
        group, channels = config.images_per_prompt * columns, set(objective.channels)
        exact = gradient == "float32" and objective.found_with_gradient(group, config.learner.microbatch, told)
        for own in (_own(config, objective), [])[: config.updates_per_epoch]:
            at_once = exact and not channels <= {*objective.linear, *objective.known_beside(own)}
            found = sources(objective, own, (*channels, *own, *objective.found_beside) if at_once else ())
            passes += 2 * len(set(found.values())) if found != before else 0
            before = found
    cells = config.prompts_per_epoch * config.images_per_prompt * columns
    branches = branches_of(config.model, config.sampler.guidance_scale)
    return passes * spot_check_size(cells, config.learner.microbatch) * branches


def coefficients_known_before(config: TrainConfig) -> bool:
    """Whether at some update the coefficients are known before the pass with gradient, as far as this tells."""
    objective, learner = build_objective(config.objective), config.learner
    columns = objective.evidence.columns(config.sampler, noisy_steps(config.sampler))
    group, channels = config.images_per_prompt * columns, set(objective.channels)
    if not objective.found_with_gradient(group, learner.microbatch, gradient_tells_evidence(config)):
        return True
    return channels <= {
        *objective.linear,
        *_sampled(config, objective.evidence),
        *objective.known_beside(_own(config, objective)),
    }


def _sampled(config: TrainConfig, evidence: Evidence) -> tuple[str, ...]:
    """What the sampler has stored of the policy that learns, at the first update of an epoch."""
    stale = config.cluster.kind == "ray" and config.cluster.max_staleness > 0
    return () if stale or config.rollout_policy == "reference" else evidence.sampled


def _own(config: TrainConfig, objective: Objective) -> list[str]:
    """As `prdp.learners.used_cells.own_passes`, at the first update of an epoch."""
    alike, passes = _alike(config, objective), objective.evidence.passes
    return [name for name, (_, of) in passes.items() if of in alike and name in objective.arrays]


def _alike(config: TrainConfig, objective: Objective) -> set[Of]:
    """Whose weights those of the learning policy are at the first update of an epoch."""
    alike: set[Of] = {"sampled"}
    old = objective.old_policy
    if old is not None and old.decay(config.epochs) == 0:
        alike |= {"old", "reference"} if old.old_is_reference else {"old"}
    return alike


def kept_outputs(config: TrainConfig) -> dict[Of, int]:
    """Whose outputs wait on the host for the pass with gradient, and their bytes in each process that learns.

    Those that do not fit as a whole are left out, though a part of them is kept.
    """
    objective, learner, cluster = build_objective(config.objective), config.learner, config.cluster
    gradient, evidence = precisions(config)
    asked = {objective.evidence.beside[name] for name in objective.found_beside}
    columns = objective.evidence.columns(config.sampler, noisy_steps(config.sampler))
    group, images = config.images_per_prompt * columns, config.prompts_per_epoch * config.images_per_prompt
    if not asked or gradient != evidence or cluster.fsdp_size > 1:
        return {}
    if objective.found_with_gradient(group, learner.microbatch, gradient_tells_evidence(config)):
        return {}
    try:
        latent = math.prod(family_of(config.model).latent_shape_of(config.model))
    except UserError:
        return {}
    size = math.ceil(images * columns / cluster.learners) * latent * np.dtype(np.float32).itemsize
    return dict.fromkeys(asked, size) if size * len(asked) <= learner.kept_outputs_gib * 2**30 else {}


def branches_of(model: ModelConfig, scale: float) -> int:
    """Network passes of one output; two with guidance where no family, or no model that is there, tells otherwise."""
    of = getattr(family_of(model), "branches_of", None)
    try:
        return int(of(model, scale)) if of is not None else 1 + guided(scale)
    except UserError:
        return 1 + guided(scale)


def noisy_steps(sampler: SamplerConfig) -> Int64:
    """Steps that draw noise, as far as the configuration alone tells."""
    # The last step of these samplers has no variance.
    ends_quietly = sampler.kind in ("ddpm", "consistency", "cps", "edm_churn")
    return np.arange(sampler.steps - max(sampler.deterministic_final_steps, int(ends_quietly)))
