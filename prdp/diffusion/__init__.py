"""Policies: one file per model family, the Gaussian transitions, the sampler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prdp.config import LearnerConfig, ModelConfig, SamplerConfig
    from prdp.diffusion.policy import Policy
    from prdp.diffusion.sampler import Keep, Sampler
    from prdp.diffusion.transitions import Transitions

FAMILIES = ("stable_diffusion", "gaussian_mixtures")


def build_policy(model: ModelConfig, learner: LearnerConfig, *, seed: int, keep_reference: bool) -> Policy:
    """Load the model that the configuration names, ready to learn.

    Args:
        model, learner: sections of the configuration.
        seed: of the adapters' random start; equal wherever the same policy is built.
        keep_reference: whether the frozen start will be asked for (samplers need it, the learner does not).

    Raises:
        ValueError: an unknown family; what is wrong with the model's folder.
    """
    if model.family == "stable_diffusion":
        from prdp.diffusion.stable_diffusion import StableDiffusionPolicy

        return StableDiffusionPolicy.load(model, learner, seed=seed, keep_reference=keep_reference)
    if model.family == "gaussian_mixtures":
        from prdp.diffusion.gaussian_mixtures import GaussianMixturesPolicy

        return GaussianMixturesPolicy(model, learner, seed=seed, keep_reference=keep_reference)
    raise ValueError(f"model.family is {model.family!r}, expected one of {', '.join(FAMILIES)}")


def transitions_of(policy: Policy, sampler: SamplerConfig) -> Transitions:
    """The transition table that a sampler section asks of a policy's scheduler."""
    return build_transitions_of(policy.scheduler_config, sampler)


def build_transitions_of(scheduler: Mapping[str, Any], sampler: SamplerConfig) -> Transitions:
    """The transition table that a sampler section asks of a scheduler's configuration.

    Raises:
        ValueError: they make no chain; names the key, its value and what was expected.
    """
    from prdp.diffusion.transitions import build_transitions

    return build_transitions(
        scheduler,
        kind=sampler.kind,
        steps=sampler.steps,
        eta=sampler.eta,
        spacing=sampler.timestep_spacing,
        deterministic_final_steps=sampler.deterministic_final_steps,
    )


def build_sampler(
    model: ModelConfig, learner: LearnerConfig, sampler: SamplerConfig, *, seed: int, keep: Keep = "trajectory"
) -> Sampler:
    """A sampler with a policy of its own; picklable as a `functools.partial`, so that an actor can call it.

    `keep` is what its rollouts hold for the learner, see `Sampler`.
    """
    from prdp.diffusion.sampler import Sampler

    policy = build_policy(model, learner, seed=seed, keep_reference=keep == "trajectory")
    return Sampler(policy, transitions_of(policy, sampler), sampler.guidance_scale, sampler.microbatch, keep)
