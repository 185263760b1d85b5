"""Policies: one file per model family, the Gaussian transitions, the sampler."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prdp.config import LearnerConfig, ModelConfig, SamplerConfig
    from prdp.diffusion.policy import Policy
    from prdp.diffusion.sampler import Keep, Sampler

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
        from prdp.worlds.mixtures.policy import GaussianMixturesPolicy

        return GaussianMixturesPolicy(model, learner, seed=seed, keep_reference=keep_reference)
    raise ValueError(f"model.family is {model.family!r}, expected one of {', '.join(FAMILIES)}")


def build_sampler(
    model: ModelConfig, learner: LearnerConfig, sampler: SamplerConfig, *, seed: int, keep: Keep = "trajectory"
) -> Sampler:
    """A sampler with a policy of its own; picklable as a `functools.partial`, so that an actor can call it.

    `keep` is what its rollouts hold for the learner, see `Sampler`.
    """
    from prdp.diffusion.sampler import Sampler

    policy = build_policy(model, learner, seed=seed, keep_reference=keep == "trajectory")
    return Sampler(policy, sampler, keep=keep)
