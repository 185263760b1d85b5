"""`prdp` from Python: compose and run, load what was trained, draw, score, and the parts of a loop of one's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prdp.configuration.compose import Composer
from prdp.support.errors import ConfigError, start_up_checks
from prdp.types import Float64, PromptBatch, UInt8

if TYPE_CHECKING:
    from prdp.cluster.base import SamplerLike
    from prdp.config import SamplerConfig, TrainConfig
    from prdp.learners.learner import Learner
    from prdp.prompts.stream import PromptSource, PromptStream
    from prdp.rewards.base import Reward

__all__ = ["Parts", "TrainedModel", "build", "check", "compose", "load_model", "load_reward", "score", "train"]


def compose(*overrides: str, config_dirs: Iterable[str | Path] = ()) -> TrainConfig:
    """The configuration of a run, from words as `prdp train` takes them; the keys and values are checked.

    Args:
        overrides: such as 'experiment=shapes_demo' and 'learner.learning_rate=1e-3'.
        config_dirs: folders with options of your own.

    Returns:
        a dataclass; `dataclasses.replace` changes it.

    Raises:
        ConfigError: an unknown key, a value out of range; by key.
        TypeError: a list of words, which are given one by one.
    """
    if wrong := [word for word in overrides if not isinstance(word, str)]:
        raise TypeError(f"compose takes words one by one, as in compose(*words), got {wrong[0]!r}")
    with Composer(overrides, folders=[Path(folder) for folder in config_dirs]) as composer:
        [job] = composer.jobs()
    config: TrainConfig = job.config
    return config


def check(config: TrainConfig) -> str:
    """What `prdp validate` checks beyond keys and values: targets, prompts, the model's files, the output folder.

    Returns:
        what does not stand in the way of a start but ought to be known; '' where there is nothing.

    Raises:
        ConfigError, StartError: naming the key and what is wrong.
    """
    from prdp.commands.train import check_start

    return check_start(config)


def train(config: TrainConfig) -> Path:
    """Check and run, or resume, as `prdp train` does; the folder with logs, checkpoints, weights and report.

    torch gets as many threads as `cluster.threads` says.

    Raises:
        ConfigError, StartError: as `check`, before anything is written.
    """
    import prdp.train
    from prdp.cluster.process_threads import apply_threads, plan_threads

    apply_threads(plan_threads(config))
    check(config)
    return prdp.train.main(config)


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A model that draws.

    Attributes:
        name: of the run, the folder or the file.
        sampler: that it draws with.
        settings: of that sampler; those of the run, where it comes from one.
    """

    name: str
    sampler: SamplerLike
    settings: SamplerConfig

    def draw(self, prompts: Sequence[str], images_per_prompt: int = 1, seed: int = 0) -> UInt8:
        """Images of prompts, uint8 [prompts * images_per_prompt, H, W, 3], the images of a prompt side by side.

        The same prompts, seed and place in the list give the same noise to every model whose latents have one shape.
        They are drawn `prompts_per_chunk` at a time, as a run does, so that pictures are a run's to the bit.

        Raises:
            ValueError: there are no prompts.
        """
        if not prompts:
            raise ValueError("prompts is empty: draw takes at least one")
        batch = PromptBatch(0, 0, tuple(prompts), tuple({} for _ in prompts))
        chunks = batch.chunks(self.settings.prompts_per_chunk)
        drawn = [self.sampler.sample(chunk, images_per_prompt, seed, trajectory=False).images for chunk in chunks]
        return np.concatenate([np.asarray(images) for images in drawn])


def load_model(model: str | Path, *overrides: str, device: str = "cpu", dtype: str = "float32") -> TrainedModel:
    """Load anything that `prdp evaluate` takes in `models`.

    Args:
        model: a run (its exported weights, else its newest checkpoint), a checkpoint, exported weights, a folder of a
            pipeline, a LoRA file, a student, a cascade, experts with gates; or 'base'.
        overrides: words such as 'model=shapes', 'model.path=...' for the base of a LoRA file or for 'base' itself, and
            'sampler.steps=20'. Without such a word a run draws as it was trained.
        device: of the network, such as 'cuda'.
        dtype: of the network, such as 'bfloat16'.

    Raises:
        StartError, ConfigError: there is no such model, or nothing says what 'base' is; by name.
        ValueError: weights that do not fit; names them.
    """
    from prdp.cluster.process_threads import apply_threads, plan_threads
    from prdp.evaluation.loading import build_evaluated_sampler
    from prdp.evaluation.models import find_models
    from prdp.evaluation.samplers import changed_sampler

    keys = [word.partition("=")[0].lstrip("+") for word in overrides]
    sections = {key.partition(".")[0] for key in keys}
    if strange := sections - {"model", "sampler"}:
        raise ConfigError(f"{min(strange)}: load_model takes keys of model and sampler only")
    composed = compose(*overrides)
    apply_threads(plan_threads(composed))
    found = find_models([str(model)], composed.model if "model" in sections else None)
    if len(found) > 1:
        names = ", ".join(one.name for one in found)
        raise ConfigError(f"{model} holds several models ({names}): load them one by one")
    [one] = found
    settings = one.sampler or (composed.sampler if one.run is None else one.run.config.sampler)
    if "sampler" in keys:
        settings = composed.sampler
    elif changed := [key.partition(".")[2] for key in keys if key.startswith("sampler.")]:
        settings = changed_sampler(settings, "sampler", {name: getattr(composed.sampler, name) for name in changed})
    with start_up_checks():
        sampler = build_evaluated_sampler(one, settings, dtype, device, None, kl=False)
    return TrainedModel(one.name, sampler, settings)


def load_reward(name: str, *overrides: str, config_dirs: Iterable[str | Path] = ()) -> Reward:
    """A reward by the name of its option, such as 'shapes_judge', or 'callable' with 'reward.path=my_module.function'.

    Args:
        overrides: arguments, such as 'reward.path=/weights/pickscore'.
        config_dirs: folders with options of your own.

    Raises:
        ConfigError, StartError: an unknown option or argument, weights that are missing; by key.
    """
    from prdp.rewards import build_reward, check_reward

    section = compose(f"reward={name}", *overrides, config_dirs=config_dirs).reward
    check_reward("reward", section)
    with start_up_checks("reward"):
        return build_reward(section)


def score(
    reward: Reward, images: UInt8, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None = None
) -> tuple[Float64, dict[str, Float64]]:
    """Scores of images: float64 [n], and {name: float64 [n]} of sub-scores, NaN where one does not apply.

    Args:
        images: uint8 [n, H, W, 3].
        prompts: one for each image, or one for every run of images that `TrainedModel.draw` made of it.
        metadata: one for each prompt.

    Raises:
        ValueError: images that cannot be shared out evenly over the prompts.
        RewardError: the reward raised, or answered with something else than scores.
    """
    from prdp.rewards.scoring import scored

    if not prompts or len(images) % len(prompts):
        raise ValueError(f"{len(images)} images of {len(prompts)} prompts: expected the same number for each prompt")
    each = len(images) // len(prompts)
    given = [{}] * len(prompts) if metadata is None else list(metadata)
    if len(given) != len(prompts):
        raise ValueError(f"{len(given)} metadata of {len(prompts)} prompts: expected one for each")
    return scored(
        reward,
        np.asarray(images),
        [text for text in prompts for _ in range(each)],
        [one for one in given for _ in range(each)],
    )


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a loop of one's own is made of.

    Attributes:
        learner: `update(rollout)` makes one optimizer step on a scored rollout; `weights()` are those to sample with.
        sampler: `load_weights(weights)`, and `sample(prompts, images_per_prompt, seed)`, which gives a rollout.
        prompts: `next(count, epoch)` gives the prompts to train on.
        heldout: the source of those to judge by.
        reward: that the configuration names.
    """

    learner: Learner
    sampler: SamplerLike
    prompts: PromptStream
    heldout: PromptSource
    reward: Reward


def build(config: TrainConfig) -> Parts:
    """The parts of a run, in this process, for a loop of one's own; nothing is written.

    torch gets as many threads as `cluster.threads` says.

    Raises:
        ConfigError, StartError: as `check`; and keys that ask for other processes than this one.
    """
    from prdp.cluster.process_threads import apply_threads, plan_threads
    from prdp.diffusion import build_policy
    from prdp.image_sets.source import rollout_source
    from prdp.learners import learner_of
    from prdp.prompts.stream import PromptStream
    from prdp.rewards import build_reward

    cluster = config.cluster
    for key, value, wanted in (("kind", cluster.kind, "inline"), ("learners", cluster.learners, 1)):
        if value != wanted:
            raise ConfigError(f"cluster.{key}={value}: api.build makes the parts of this process: must be {wanted}")
    apply_threads(plan_threads(config))
    check(config)
    source = rollout_source(config)
    prompts = source.prompts()
    with start_up_checks():
        policy = build_policy(config.model, config.learner, seed=config.seed, keep_reference=False, only_network=True)
        learner = learner_of(config, policy)
        sampler = source.sampler_factory(learner.recorder)()
        reward = build_reward(source.reward())
    stream = PromptStream(prompts.train, config.seed, config.prompts.shuffle)
    return Parts(learner, sampler, stream, prompts.heldout, reward)
