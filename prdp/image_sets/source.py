"""Where the rollouts of a run come from: a sampler that draws, or sets of images."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Protocol

from prdp.diffusion import build_sampler
from prdp.image_sets.checks import check_sets, set_notes
from prdp.image_sets.reading import StoredPrompts
from prdp.image_sets.stored_scores import with_stored_scores
from prdp.prompts import RunPrompts, prompts_of_run

if TYPE_CHECKING:
    from prdp.cluster.base import SamplerFactory
    from prdp.config import TrainConfig
    from prdp.diffusion.recording import Recorder
    from prdp.image_sets.stored_sampler import StoredSampler


class RolloutSource(Protocol):
    """What a run builds its workforce and its prompts of.

    Attributes:
        drawn: whether the images are drawn by weights of the run.
    """

    drawn: bool

    def prompts(self) -> RunPrompts:
        """The prompts of the run."""
        ...

    def sampler_factory(self, recorder: Recorder) -> SamplerFactory:
        """What samplers are built by; picklable."""
        ...

    def reward(self) -> Mapping[str, Any]:
        """The section that rewards are built of."""
        ...

    def check(self) -> None:
        """Refuse what cannot start.

        Raises:
            ConfigError, StartError: by key.
        """
        ...

    def notes(self) -> list[str]:
        """What ought to be known of it, a line each."""
        ...


def rollout_source(config: TrainConfig) -> RolloutSource:
    """The one that `rollouts.source` names."""
    return Stored(config) if config.rollouts.source == "stored" else Sampled(config)


class Sampled:
    """Images that are drawn in every epoch."""

    drawn = True

    def __init__(self, config: TrainConfig) -> None:
        self._config = config

    def prompts(self) -> RunPrompts:
        return prompts_of_run(self._config.prompts, self._config.evaluation)

    def sampler_factory(self, recorder: Recorder) -> SamplerFactory:
        config = self._config
        return partial(
            build_sampler, config.model, config.learner, config.sampler, seed=config.seed, recorder=recorder
        )

    def reward(self) -> Mapping[str, Any]:
        return self._config.reward

    def check(self) -> None:
        """The sampler is checked with the model."""

    def notes(self) -> list[str]:
        return []


class Stored:
    """Images of the sets of `rollouts.path`."""

    drawn = False

    def __init__(self, config: TrainConfig) -> None:
        self._config = config

    @cached_property
    def _prompts(self) -> StoredPrompts:
        return StoredPrompts(self._config.rollouts.folders, self._config.rollouts.skill)

    def prompts(self) -> RunPrompts:
        return prompts_of_run(self._config.prompts, self._config.evaluation, self._prompts)

    def sampler_factory(self, recorder: Recorder) -> SamplerFactory:
        self.check()
        config, rollouts = self._config, self._config.rollouts
        return partial(
            _stored_sampler,
            model=config.model,
            learner=config.learner,
            sampler=config.sampler,
            seed=config.seed,
            folders=[str(one.folder.resolve()) for one in self._prompts.sets],
            skill=rollouts.skill,
            encode=rollouts.encode,
        )

    def reward(self) -> Mapping[str, Any]:
        section: Mapping[str, Any] = with_stored_scores(self._config.reward, self._prompts.sets)
        return section

    def check(self) -> None:
        check_sets(self._config, self._prompts.sets)

    def notes(self) -> list[str]:
        return set_notes(self._config, self._prompts.sets)


def _stored_sampler(**arguments: Any) -> StoredSampler:
    from prdp.image_sets.stored_sampler import build_stored_sampler

    return build_stored_sampler(**arguments)
