"""Learners: evidence, coefficients, accumulation, step; one coordinator, and an engine in torch or in JAX, or many."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prdp.config import FRAMEWORKS, LearnerConfig, ModelConfig, SamplerConfig, TrainConfig

if TYPE_CHECKING:
    from prdp.diffusion.policy import Policy
    from prdp.diffusion.transitions import Transitions
    from prdp.learners.device_engine import DeviceEngine
    from prdp.learners.learner import Learner
    from prdp.learners.rank import LearnerRank
    from prdp.learners.replicas import Ranks
    from prdp.objectives import Objective


@dataclass(frozen=True)
class RankSettings:
    """Sections of the configuration that the ranks of a learner are built from; picklable."""

    model: ModelConfig
    learner: LearnerConfig
    sampler: SamplerConfig
    objective: Mapping[str, Any]
    seed: int
    shards: int = 1

    @classmethod
    def of(cls, config: TrainConfig) -> RankSettings:
        """Those of a run."""
        shards = config.cluster.fsdp_size
        return cls(config.model, config.learner, config.sampler, config.objective, config.seed, shards)

    def on_gpu(self, number: int) -> RankSettings:
        """The same on the GPU that is so many after the one that the model names, or after the first."""
        first = int(self.model.device.partition(":")[2] or 0)
        return dataclasses.replace(self, model=dataclasses.replace(self.model, device=f"cuda:{first + number}"))

    @property
    def digest(self) -> str:
        """Hex digest of all but the device, which is each rank's own."""
        same = dataclasses.replace(self, model=dataclasses.replace(self.model, device=""))
        return hashlib.blake2b(repr(same).encode(), digest_size=8).hexdigest()


def build_rank(settings: RankSettings) -> LearnerRank:
    """A rank with a policy of its own, for a process of its own.

    Raises:
        ValueError: as `build_learner` and `prdp.diffusion.build_policy`.
    """
    from prdp.learners.rank import LearnerRank
    from prdp.objectives import build_objective

    sampler = settings.sampler
    policy = learner_policy(settings.model, settings.learner, settings.seed, settings.shards)
    engine = _engine(
        policy,
        policy.process.transitions(sampler),
        sampler.guidance_scale,
        settings.learner,
        build_objective(settings.objective),
        settings.seed,
        settings.shards,
    )
    return LearnerRank(engine, settings.digest)


def learner_policy(model: ModelConfig, learner: LearnerConfig, seed: int, shards: int = 1) -> Policy:
    """The policy of a learner, with the network alone.

    Args:
        model, learner: sections of the configuration.
        seed: of the run.
        shards: processes that its network is to be divided among. A network of diffusers is then loaded on the host,
            and only parts of it go to the policy's device.

    Raises:
        ValueError: as `prdp.diffusion.build_policy`.
    """
    from prdp.diffusion import build_policy, family_of
    from prdp.diffusion.folder_policy import FolderPolicy

    family: Any = family_of(model)
    on_host = shards > 1 and isinstance(family, type) and issubclass(family, FolderPolicy)
    loaded = dataclasses.replace(model, device="cpu") if on_host else model
    policy = build_policy(loaded, learner, seed=seed, keep_reference=False, only_network=True)
    if on_host:
        import torch

        from prdp.diffusion.determinism import set_up_arithmetic
        from prdp.diffusion.pipeline_loading import device_of

        policy.device = torch.device(device_of(model))
        set_up_arithmetic(policy.device, model.deterministic)
    return policy


def learner_of(config: TrainConfig, policy: Policy, ranks: Ranks | None = None) -> Learner:
    """The learner of a run: `build_learner` with what its configuration says; a schedule decays over the run.

    Args:
        policy: of `config.model` and `config.learner`.
        ranks: processes that share the work, built of `RankSettings.of(config)`.

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
        ranks,
        RankSettings.of(config).digest,
        config.cluster.fsdp_size,
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
    ranks: Ranks | None = None,
    configuration: str = "",
    shards: int = 1,
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
        ranks: processes that share the work with this one, see `build_rank`; None for none.
        configuration: the digest that they have.
        shards: of all these processes, how many hold one network together.

    Raises:
        RankMismatchError: a rank is not what this process is.
        ValueError: an unknown framework or objective, knobs that it does not take, JAX that is not installed, or a
            network that JAX does not compute.
    """
    from prdp.learners.learner import Learner
    from prdp.objectives import build_objective

    built = build_objective(objective)
    engine = _engine(policy, transitions, guidance_scale, config, built, seed, shards)
    if ranks is None:
        return Learner(engine, built, config, updates_per_epoch, reward_terms)
    from prdp.learners.sharded_engine import ShardedEngine

    return Learner(ShardedEngine(engine, ranks, configuration), built, config, updates_per_epoch, reward_terms)


def share_gpus() -> None:
    """Before JAX looks at its devices: by itself it takes three quarters of each GPU, where torch wants memory, too."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def _engine(
    policy: Policy,
    transitions: Transitions,
    guidance_scale: float,
    config: LearnerConfig,
    objective: Objective,
    seed: int,
    shards: int,
) -> DeviceEngine:
    settings = (policy, transitions, guidance_scale, objective.evidence, objective.channels, config, seed)
    if shards > 1:
        from prdp.learners.fsdp_engine import FsdpEngine

        return FsdpEngine(*settings, shards)
    if config.framework == "torch":
        from prdp.learners.torch_engine import TorchEngine

        return TorchEngine(*settings)
    if config.framework == "jax":
        share_gpus()
        try:
            from prdp.learners.jax_engine import JaxEngine
        except ModuleNotFoundError as error:
            raise ValueError(
                f"learner.framework=jax needs {error.name}: install it by pip install 'prdp[jax]'"
            ) from None
        return JaxEngine(*settings)
    raise ValueError(f"learner.framework is {config.framework!r}, expected one of {', '.join(FRAMEWORKS)}")
