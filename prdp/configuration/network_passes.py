"""Passes of the network that an image costs, by phase and by whose they are, derived from a run's configuration."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from prdp.config import ModelConfig, SamplerConfig, TrainConfig
from prdp.diffusion import family_of
from prdp.diffusion.guidance import guided
from prdp.evidence.base import Evidence, Of
from prdp.learners.precision import evidence_precision, spot_check_size
from prdp.learners.update_plan import Precisions, UpdatePlan, alike_policies, plan_update
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
    objective, scale = build_objective(config.objective), config.sampler.guidance_scale
    evidence, channels, noisy = objective.evidence, objective.channels, noisy_steps(config.sampler)
    branches, kept = branches_of(config.model, scale), kept_outputs(config).keys()
    without = 0
    for plan, alike in _updates(config, objective):
        # Whose outputs are those of the policy.
        same = {of for of in alike if evidence.guidance_of(of) in (None, scale)}
        asked = [{of for name, of in evidence.others.items() if name in names} for names in (plan.before, channels)]
        asked[0] |= {evidence.beside[name] for name in plan.beside if plan.before}
        without += branches * (bool(plan.before) + len(plan.further))
        without += sum(_branches_of_other(config, evidence, of) for others in asked for of in others - same)
        # Made once, where both a pass of their own and the one with gradient take them.
        without -= branches * len({of for _, of in plan.further.values()} & kept - same)
    columns = evidence.columns(config.sampler, noisy)
    drawn, frozen = config.rollouts.source == "sample", config.rollout_policy == "reference"
    reference_steps = 0 if frozen else evidence.reference_passes(config.sampler, noisy, objective.arrays)
    return ImagePasses(
        policy=config.sampler.steps * branches * drawn,
        reference=reference_steps * branches * drawn,
        evidence=columns * without,
        gradient=columns * branches * config.updates_per_epoch,
    )


def _updates(config: TrainConfig, objective: Objective) -> Iterator[tuple[UpdatePlan, set[Of]]]:
    """Of every update of an epoch, its plan, and whose weights those of the learning policy are."""
    evidence, old = objective.evidence, objective.old_policy
    group = config.images_per_prompt * evidence.columns(config.sampler, noisy_steps(config.sampler))
    stale = config.cluster.kind == "ray" and config.cluster.max_staleness > 0
    on_policy = not stale and config.rollout_policy == "current"
    for update in range(config.updates_per_epoch):
        first = update == 0
        unmoved = first and old is not None and old.decay(config.epochs) == 0
        alike = alike_policies(objective, first, unmoved)
        sampled = evidence.sampled if first and on_policy else ()
        yield plan_update(objective, precisions(config), group, config.learner.microbatch, sampled, alike), alike


def _branches_of_other(config: TrainConfig, evidence: Evidence, of: Of) -> int:
    """Network passes of an output that `Evidence.others` names."""
    scale = evidence.guidance_of(of)
    return branches_of(config.model, config.sampler.guidance_scale if scale is None else scale)


def precisions(config: TrainConfig) -> Precisions:
    """Of the pass with gradient, and of evidence."""
    gradient = config.learner.autocast or config.model.dtype
    return Precisions(gradient, evidence_precision(config.learner.evidence_precision, gradient))


def checked_passes(config: TrainConfig) -> int:
    """In an epoch after the first, of the few cells by which the error of evidence is measured: by `PrecisionWatch`."""
    objective, given = build_objective(config.objective), precisions(config)
    columns = objective.evidence.columns(config.sampler, noisy_steps(config.sampler))
    passes, before = 0, None
    if objective.evidence.guard(objective.channels) is None:
        for plan, _ in _updates(config, objective):
            passes += 2 * len(set(plan.rounded.values())) if plan.rounded != before else 0
            before = plan.rounded
    elif given.evidence != "float32" or not given.tell:
        passes = 2 + len({of for name, of in objective.evidence.others.items() if name in objective.channels})
    cells = config.prompts_per_epoch * config.images_per_prompt * columns
    branches = branches_of(config.model, config.sampler.guidance_scale)
    return passes * spot_check_size(cells, config.learner.microbatch) * branches


def coefficients_known_before(config: TrainConfig) -> bool:
    """Whether at some update the coefficients are known before the pass with gradient, as far as this tells."""
    return not all(plan.at_once for plan, _ in _updates(config, build_objective(config.objective)))


def kept_outputs(config: TrainConfig) -> dict[Of, int]:
    """Whose outputs wait on the host for the pass with gradient, and their bytes in each process that learns.

    Those that do not fit as a whole are left out, though a part of them is kept.
    """
    objective, learner, cluster = build_objective(config.objective), config.learner, config.cluster
    given = precisions(config)
    asked = {objective.evidence.beside[name] for name in objective.found_beside}
    columns = objective.evidence.columns(config.sampler, noisy_steps(config.sampler))
    group, images = config.images_per_prompt * columns, config.prompts_per_epoch * config.images_per_prompt
    if not asked or given.gradient != given.evidence or cluster.fsdp_size > 1:
        return {}
    if objective.found_with_gradient(group, learner.microbatch, given.tell):
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
