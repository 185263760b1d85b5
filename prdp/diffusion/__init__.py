"""Policies: one file per model family, the Gaussian transitions, the sampler."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prdp.config import FAMILIES
from prdp.support.errors import ConfigError
from prdp.support.targets import locate

if TYPE_CHECKING:
    from prdp.config import LearnerConfig, ModelConfig, SamplerConfig
    from prdp.diffusion.policy import Policy
    from prdp.diffusion.recording import Recorder
    from prdp.diffusion.sampler import Sampler

_OF_CLASSES = (
    "load", "check", "learner_problems", "process_of", "latent_shape_of", "picture_size_of", "encode", "output",
    "float32", "reference", "decode", "save", "usage",
)  # fmt: skip
"""Members of `Policy` that a class has; the others are an instance's."""


def family_of(model: ModelConfig) -> type[Policy]:
    """The policy class that `model.family` names.

    Raises:
        ConfigError: an unknown family, or a dotted path to nothing.
    """
    if model.family not in FAMILIES and "." not in model.family:
        raise ConfigError(f"model.family={model.family}: must be one of {', '.join(FAMILIES)}, or a dotted path")
    found: type[Policy] = locate("model.family", FAMILIES.get(model.family, model.family))
    if model.family not in FAMILIES:
        lacking = [name for name in _OF_CLASSES if not callable(getattr(found, name, None))]
        if not isinstance(found, type) or lacking:
            what = f"{model.family} lacks {', '.join(lacking)}" if isinstance(found, type) else "is no class"
            raise ConfigError(
                f"model.family={model.family}: {what}; must be a class that answers prdp.diffusion.policy.Policy"
            )
    return found


def build_policy(
    model: ModelConfig, learner: LearnerConfig, *, seed: int, keep_reference: bool, only_network: bool = False
) -> Policy:
    """Load the model that the configuration names, ready to learn.

    Args:
        model, learner: sections of the configuration.
        seed: of the adapters' random start; equal wherever the same policy is built.
        keep_reference: whether the frozen start will be asked for (samplers need it, the learner does not).
        only_network: leave out what encodes prompts and decodes latents, which the learner does not need.

    Raises:
        ValueError: an unknown family; what is wrong with the model's folder.
    """
    return family_of(model).load(
        model, learner, seed=seed, keep_reference=keep_reference, only_network=only_network
    )


def build_sampler(
    model: ModelConfig,
    learner: LearnerConfig,
    sampler: SamplerConfig,
    *,
    seed: int,
    recorder: Recorder | None = None,
) -> Sampler:
    """A sampler with a policy of its own; picklable as a `functools.partial`, so that an actor can call it.

    `recorder` keeps what its rollouts hold for the learner, see `Sampler`.
    """
    from prdp.diffusion.sampler import Sampler

    needs_reference = recorder is not None and recorder.needs_reference
    policy = build_policy(model, learner, seed=seed, keep_reference=needs_reference)
    return Sampler(policy, sampler, recorder=recorder)
