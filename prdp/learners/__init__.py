"""Learners: evidence, coefficients, accumulation, step; one contract, a twin in torch and one in JAX."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prdp.config import FRAMEWORKS

if TYPE_CHECKING:
    from prdp.config import LearnerConfig
    from prdp.diffusion.policy import Policy
    from prdp.diffusion.transitions import Transitions
    from prdp.learners.base import Learner


def build_learner(
    policy: Policy,
    transitions: Transitions,
    guidance_scale: float,
    config: LearnerConfig,
    objective: Mapping[str, Any],
    seed: int = 0,
) -> Learner:
    """The learner that `config.framework` names; only 'jax' imports JAX.

    Args:
        objective: name and knobs, see `prdp.objectives`.
        seed: of the run; denoising evidence draws its noise from it.

    Raises:
        ValueError: an unknown framework or objective, knobs that it does not take, JAX that is not installed, or a
            network or an objective that the twin does not compute.
    """
    if config.framework == "torch":
        from prdp.learners.torch_learner import TorchLearner

        return TorchLearner(policy, transitions, guidance_scale, config, objective, seed)
    if config.framework == "jax":
        try:
            from prdp.learners.jax_learner import JaxLearner
        except ModuleNotFoundError as error:
            raise ValueError(
                f"learner.framework=jax needs {error.name}: install it by pip install 'prdp[jax]'"
            ) from None
        return JaxLearner(policy, transitions, guidance_scale, config, objective)
    raise ValueError(f"learner.framework is {config.framework!r}, expected one of {', '.join(FRAMEWORKS)}")
