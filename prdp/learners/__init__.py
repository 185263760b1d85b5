"""Learners: evidence, coefficients, accumulation, step; one coordinator, and an engine in torch or in JAX."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prdp.config import FRAMEWORKS

if TYPE_CHECKING:
    from prdp.config import LearnerConfig, TrainConfig
    from prdp.diffusion.policy import Policy
    from prdp.diffusion.transitions import Transitions
    from prdp.learners.engine import Engine
    from prdp.learners.learner import Learner


def learner_of(config: TrainConfig, policy: Policy) -> Learner:
    """The learner of a run: `build_learner` with what its configuration says; a schedule decays over the run.

    Args:
        policy: of `config.model` and `config.learner`.

    Raises:
        ValueError: as `build_learner`.
    """
    from prdp.learners.schedule import decaying_over
    from prdp.rewards.weighted_sum import optimised_terms

    return build_learner(
        policy,
        policy.process.transitions(config.sampler),
        config.sampler.guidance_scale,
        decaying_over(config.learner, config.epochs * config.updates_per_epoch),
        config.objective,
        config.seed,
        config.updates_per_epoch,
        optimised_terms(config.reward),
    )


def build_learner(
    policy: Policy,
    transitions: Transitions,
    guidance_scale: float,
    config: LearnerConfig,
    objective: Mapping[str, Any],
    seed: int = 0,
    updates_per_epoch: int = 1,
    reward_terms: Mapping[str, float] | None = None,
) -> Learner:
    """The learner on the engine that `config.framework` names; only 'jax' imports JAX.

    Args:
        policy: its learning weights are trained; in place by torch.
        transitions: the table that the rollouts were sampled with.
        guidance_scale: that the rollouts were sampled with.
        objective: name and knobs, see `prdp.objectives`.
        seed: of the run; denoising evidence draws its noise from it.
        updates_per_epoch: on every rollout.
        reward_terms: name -> weight of the terms of a weighted sum; for an objective that takes them apart.

    Raises:
        ValueError: an unknown framework or objective, knobs that it does not take, JAX that is not installed, or a
            network that JAX does not compute.
    """
    from prdp.learners.learner import Learner
    from prdp.objectives import build_objective

    built = build_objective(objective)
    settings = (policy, transitions, guidance_scale, built.evidence, built.channels, config, seed)
    if config.framework == "torch":
        from prdp.learners.torch_engine import TorchEngine

        engine: Engine = TorchEngine(*settings)
    elif config.framework == "jax":
        try:
            from prdp.learners.jax_engine import JaxEngine
        except ModuleNotFoundError as error:
            raise ValueError(
                f"learner.framework=jax needs {error.name}: install it by pip install 'prdp[jax]'"
            ) from None
        engine = JaxEngine(*settings)
    else:
        raise ValueError(f"learner.framework is {config.framework!r}, expected one of {', '.join(FRAMEWORKS)}")
    return Learner(engine, built, config, updates_per_epoch, reward_terms)
