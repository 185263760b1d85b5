"""What every workforce offers, and the checks they share: acknowledged weights, whole chunks, complete rewards."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from prdp.errors import UserError
from prdp.rewards.base import Reward, checked_scores, identity_of
from prdp.types import Float64, PromptBatch, Rollout, UInt8, Weights

OnChunk = Callable[[Rollout], None]


class SamplerLike(Protocol):
    """The plain class behind a sampler."""

    def load_weights(self, weights: Weights) -> tuple[int, str]:
        """Bind every tensor or raise; answer (version, checksum of the tensors as bound)."""
        ...

    def sample(self, prompts: PromptBatch, images_per_prompt: int, seed: int, trajectory: bool = True) -> Rollout:
        """Unscored images, a pure function of the arguments and the weights."""
        ...


class RewardLike(Protocol):
    """The plain class behind a reward actor; `RewardWorker` is the one."""

    def score(
        self, images: UInt8, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]], where: str
    ) -> tuple[Float64, dict[str, Float64]]:
        """Checked rewards float64 [n] and sub-scores {name: float64 [n]} of uint8 images [n, H, W, 3]."""
        ...


SamplerFactory = Callable[[], SamplerLike]
RewardFactory = Callable[[], RewardLike]


class Workforce(Protocol):
    """Samplers and rewards behind one face, whether they live in this process or in actors."""

    def publish(self, weights: Weights) -> None:
        """Hand new weights to every sampler; each acknowledges version and checksum before its next rollout."""
        ...

    def sample(
        self,
        prompts: PromptBatch,
        *,
        images_per_prompt: int,
        seed: int,
        trajectory: bool = True,
        on_chunk: OnChunk | None = None,
    ) -> Rollout:
        """Sample and score; the result is in prompt order and does not depend on who did the work.

        `on_chunk` sees each scored chunk when it is finished, in no particular order. `seconds` of the result are
        summed over the chunks, so with several actors they exceed the wall time.
        """
        ...

    @property
    def reward_identity(self) -> dict[str, Any]:
        """Name and version of the reward, as `prdp.rewards.base.identity_of` tells them."""
        ...

    def close(self) -> None:
        """Let go of samplers and rewards; closing twice is fine."""
        ...


class ClusterError(RuntimeError):
    """The cluster cannot do the work: actors keep dying, for instance."""


class ClusterSetupError(UserError, ClusterError):
    """The cluster that was asked for is not there, or lacks the processors or GPUs asked for."""


class WeightsMismatchError(ClusterError):
    """A sampler holds, or sampled with, other weights than were published."""


class RewardError(ValueError):
    """A reward raised; the message names the reward, the place and the original error."""


class RewardWorker:
    """Scores images with one reward and checks every answer.

    Args:
        reward: the `reward` section of the configuration, for `prdp.rewards.build_reward`; or a reward already built.
    """

    def __init__(self, reward: Mapping[str, Any] | Reward) -> None:
        if isinstance(reward, Mapping):
            from prdp.rewards import build_reward

            self.reward: Reward = build_reward(reward)
        else:
            self.reward = reward

    def score(
        self, images: UInt8, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]], where: str
    ) -> tuple[Float64, dict[str, Float64]]:
        """Score uint8 images [n, H, W, 3]: rewards float64 [n] and sub-scores {name: float64 [n]}.

        Raises:
            RewardError: the reward raised.
            ValueError: the answer has a wrong length, is not numeric or not finite; see `checked_scores`.
        """
        try:
            result = self.reward.score(images, prompts, metadata)
        except Exception as error:
            raise RewardError(
                f"reward '{self.reward.name}' ({where}) raised {type(error).__name__}: {error}"
            ) from error
        return checked_scores(self.reward.name, result, len(images), where)

    def identity(self) -> dict[str, Any]:
        """Name and version of the reward, and of its terms where it has some."""
        return identity_of(self.reward)


def identity_of_worker(worker: RewardLike) -> dict[str, Any]:
    """What a reward worker says about its reward; nothing when it is not one that tells."""
    tell = getattr(worker, "identity", None)
    return dict(tell()) if callable(tell) else {}


def place(chunk: PromptBatch) -> str:
    """Where a chunk lies, for messages: 'epoch 3, prompts 8 to 11'."""
    return f"epoch {chunk.epoch}, prompts {chunk.offset} to {chunk.offset + len(chunk) - 1}"


def acknowledged(weights: Weights, answers: Mapping[str, tuple[int, str]]) -> None:
    """Check that every sampler answered the version and checksum that were published.

    Raises:
        WeightsMismatchError: naming the first sampler that differs, and both values.
    """
    expected = (weights.version, weights.checksum)
    for sampler, answer in answers.items():
        if tuple(answer) != expected:
            raise WeightsMismatchError(
                f"{sampler} acknowledged weights version {answer[0]}, checksum {answer[1]}, but version "
                f"{weights.version}, checksum {weights.checksum} was published"
            )


def sampled(sampler: SamplerLike, chunk: PromptBatch, images_per_prompt: int, seed: int, trajectory: bool) -> Rollout:
    """Let a sampler work on a chunk and note the seconds it took."""
    start = time.perf_counter()
    rollout = sampler.sample(chunk, images_per_prompt, seed, trajectory)
    return dataclasses.replace(rollout, seconds={**rollout.seconds, "sample": time.perf_counter() - start})


def check_rollout(rollout: Rollout, chunk: PromptBatch, images_per_prompt: int, weights: Weights | None) -> None:
    """Check that a rollout answers the chunk asked for, in full, under the published weights (any, when None).

    Raises:
        WeightsMismatchError: it was made by another weights version or checksum.
        ValueError: it holds other prompts or another number of images.
    """
    made_by = (rollout.weights_version, rollout.weights_checksum)
    if weights is not None and made_by != (weights.version, weights.checksum):
        raise WeightsMismatchError(
            f"the rollout of {place(chunk)} was made by weights version {made_by[0]}, checksum {made_by[1]}, but "
            f"version {weights.version}, checksum {weights.checksum} was published"
        )
    if rollout.prompts.offset != chunk.offset or rollout.prompts.texts != chunk.texts:
        raise ValueError(f"asked for {place(chunk)}, the sampler answered with {place(rollout.prompts)} or other texts")
    expected = len(chunk) * images_per_prompt
    if len(rollout) != expected:
        raise ValueError(
            f"the rollout of {place(chunk)} holds {len(rollout)} images, expected {expected} "
            f"({len(chunk)} prompts of {images_per_prompt} images)"
        )


def check_request(prompts: PromptBatch, images_per_prompt: int) -> None:
    """Refuse an empty request before any work starts."""
    if not len(prompts):
        raise ValueError(f"epoch {prompts.epoch} has no prompts to sample: the prompt list is empty")
    if images_per_prompt < 1:
        raise ValueError(f"images_per_prompt must be at least 1, got {images_per_prompt}")
