"""What a method asks of the rest of a configuration, and what it would not read there."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from prdp.config import LearnerConfig, TrainConfig
from prdp.configuration.network_passes import coefficients_known_before
from prdp.configuration.sampler_bounds import log_prob_problems
from prdp.evidence import Evidence
from prdp.learners.precision import TF32_TOLERANCE
from prdp.objectives import (
    Method,
    build_objective,
    evidence_of,
    method_of,
    objective_label,
    objective_mistakes,
    objectives_without_noise,
)
from prdp.support.errors import ConfigError
from prdp.support.targets import TARGET

STORED = ("final_latents",)
"""What of `Rollout.stored` a set of images has."""


def objective_problems(config: TrainConfig) -> list[str]:
    """What is wrong with the objective and its knobs, or does not fit the rest; imports what a `_target_` names."""
    found, label = objective_mistakes(config.objective), objective_label(config.objective)
    with contextlib.suppress(ConfigError, TypeError):  # told by the line above
        method = method_of(config.objective)
        if method.compares_images and config.images_per_prompt == 1:
            found.append(
                f"images_per_prompt=1: must be at least 2: {label} compares images of the same prompt, and fewer make "
                "no pair"
            )
        if not found:
            found += _terms_problems(config, label)
            top = build_objective(config.objective).knobs.get("top", 0)
            if top >= config.images_per_prompt:
                found.append(
                    f"objective.top={top}: must be below images_per_prompt={config.images_per_prompt}: the best of a "
                    "prompt's images would be all of them"
                )
        if found:
            return found
        evidence = evidence_of(config.objective, method)
        found += _stored_problems(config, evidence, label) + _idle_problems(config, method, label)
        found += _precision_problems(config, label)
        found += evidence.problems(config.sampler, config.images_per_prompt, label)
        if evidence.needs_noise:
            other = next((kind for kind, one in method.kinds.items() if not one.needs_noise), None)
            advice = (
                f"set objective.evidence={other}, which needs none"
                if other
                else (f"take an objective that needs none: {', '.join(objectives_without_noise())}")
            )
            found += [f"{problem}, or {advice}" for problem in log_prob_problems(config.sampler, label)]
    return found


def _stored_problems(config: TrainConfig, evidence: Evidence, label: str) -> list[str]:
    """Evidence that is computed from more than a set of images keeps."""

    def further(one: Evidence) -> list[str]:
        others = [name.replace("_", " ") for name in one.keeps if name not in STORED]
        return others or (["steps of the sampler"] if one.keeps_steps else [])

    if config.rollouts.source != "stored" or not further(evidence):
        return []
    enough = [kind for kind, one in method_of(config.objective).kinds.items() if not further(one)]
    advice = f"set objective.evidence={enough[0]}" if enough else f"take one of {', '.join(objectives_without_noise())}"
    return [
        f"rollouts.source=stored: a set of images keeps their final latents alone, and the {evidence.kind} evidence of "
        f"{label} is computed from {', '.join(further(evidence))}; {advice}"
    ]


def _idle_problems(config: TrainConfig, method: Method, label: str) -> list[str]:
    """Keys that this objective does not read, or not beside other keys of the run."""
    found = []
    given, knob = config.objective.get("old_samples"), method.knobs.get("old_samples")
    if knob is not None and given not in (None, knob.default):
        stored, frozen = config.rollouts.source == "stored", config.rollout_policy == "reference"
        if stored or frozen:
            why = "rollouts.source=stored, whose images are there already" if stored else (
                "rollout_policy=reference, by which the frozen start samples"
            )  # fmt: skip
            found.append(
                f"objective.old_samples={str(given).lower()}: has no effect with {why}; leave it at "
                f"{str(knob.default).lower()}"
            )
    objective, unset = build_objective(config.objective), LearnerConfig().ratio_tolerance
    if config.learner.ratio_tolerance != unset and objective.evidence.guard(objective.channels) is None:
        found.append(
            f"learner.ratio_tolerance={config.learner.ratio_tolerance:g}: has no effect on {label}, of whose evidence "
            f"the sampler stores nothing to compare with; leave it at {unset:g}"
        )
    return found


def _precision_problems(config: TrainConfig, label: str) -> list[str]:
    """Evidence in less than float32 where it says nothing, or where stored log-ratios would be rounding."""
    learner = config.learner
    chosen = f"learner.evidence_precision={learner.evidence_precision}"
    if learner.evidence_precision not in ("tf32", "half"):
        return []
    if learner.framework == "jax":
        return [f"{chosen}: must be float32 for learner.framework=jax"]
    objective = build_objective(config.objective)
    stored = objective.evidence.guard(objective.channels) is not None
    what = f"the {objective.evidence.kind} evidence of {label}"
    if learner.evidence_precision == "tf32":
        if not stored or learner.ratio_tolerance >= TF32_TOLERANCE:
            return []
        return [
            f"{chosen}: {what} repeats less exactly than learner.ratio_tolerance={learner.ratio_tolerance:g}; set that "
            f"to {TF32_TOLERANCE:g}"
        ]
    if stored:
        return [f"{chosen}: must be float32 or tf32 for {what}, which half precision rounds away"]
    return []


def _terms_problems(config: TrainConfig, label: str) -> list[str]:
    from prdp.rewards.weighted_sum import WeightedSum, is_weighted_sum

    objective = build_objective(config.objective)
    if "reward_terms" not in objective.arrays or is_weighted_sum(config.reward):
        return []
    knob = objective.method.only_with.get("reward_terms")
    asks = f"{label} takes the terms of a reward apart" if knob is None else f"objective.{knob}=true"
    kind = f"{WeightedSum.__module__}.{WeightedSum.__name__}"
    return [f"{asks}: reward.{TARGET}={config.reward.get(TARGET)} must be {kind}, as reward=weighted_sum is"]


def evidence_problems(config: TrainConfig) -> list[str]:
    """Why the objective's evidence has no size for this sampler; all else has passed its checks."""
    from prdp.diffusion import family_of

    objective, sampler = build_objective(config.objective), config.sampler
    evidence = objective.evidence
    noisy = family_of(config.model).process_of(config.model).transitions(sampler).noisy
    where = f"{objective_label(config.objective)}: {type(evidence).__name__}"
    try:
        columns = evidence.columns(sampler, noisy)
        kept = evidence.stored_latents(sampler, noisy, objective.arrays)
    except ValueError as error:
        return [str(error)]
    if not isinstance(columns, int) or columns < 1:
        return [f"{where}.columns says {columns!r}, must be a whole number of at least 1"]
    if not isinstance(kept, Mapping) or not all(isinstance(size, int | float) for size in kept.values()):
        return [f"{where}.stored_latents says {kept!r}, must be a number for each name of what is kept"]
    least, group = config.learner.least_coefficient, config.images_per_prompt * columns
    if least and not coefficients_known_before(config):
        return [
            f"learner.least_coefficient={least:g}: has no effect where learner.microbatch={config.learner.microbatch} "
            f"holds a group, {group} cells: coefficients are found in the pass with gradient; leave it at 0, or set "
            f"learner.microbatch below {group}"
        ]
    return []
