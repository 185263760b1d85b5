"""What every workforce offers, and the checks they share: acknowledged weights, whole chunks, complete rewards."""

from __future__ import annotations

import dataclasses
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from prdp.cluster import buffers
from prdp.rewards.base import Reward, identity_of, waits_of
from prdp.rewards.scoring import RewardUnavailableError, first_line, scored
from prdp.support.errors import ResumableError, UserError
from prdp.support.remote_rows import RowArray, RowsLostError
from prdp.types import Float64, PromptBatch, Rollout, UInt8, Weights

OnChunk = Callable[[Rollout], None]

_log = logging.getLogger(__name__)


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


class Pending(Protocol):
    """A rollout on its way."""

    def result(self, on_chunk: OnChunk | None = None) -> Rollout:
        """Wait for it: sampled and scored, in prompt order, whoever did the work. To be asked for once.

        `on_chunk` sees each scored chunk when it is finished, in no particular order, in the caller's thread. `seconds`
        of the result are summed over the chunks, so with several actors they exceed the wall time. That is "rollout",
        and "sampling" for the part of it in which images were sampled: with actors up to the last one sampled, in one
        process without the scoring that comes between.

        Raises:
            WeightsMismatchError: a sampler bound, or sampled with, other weights than were published.
            ClusterError: actors keep dying.
            Exception: what the sampler or the reward raised, as itself.
        """
        ...


class Workforce(ABC):
    """Samplers and rewards behind one face, whether they live in this process or in actors."""

    plan: str = ""
    """Which actors there are and where, in lines for people."""

    @abstractmethod
    def publish(self, weights: Weights) -> None:
        """The weights of every request from now on; each sampler acknowledges version and checksum before it uses them.

        Requests that are under way keep the weights they were made with.
        """

    @abstractmethod
    def submit(
        self, prompts: PromptBatch, *, images_per_prompt: int, seed: int, trajectory: bool = True, urgent: bool = False
    ) -> Pending:
        """Ask for a rollout without waiting for it.

        Requests are served in order; an urgent one comes before all others, but waits for chunks that are being
        sampled.

        Raises:
            ValueError: no prompts, or no images of them.
        """

    def sample(
        self,
        prompts: PromptBatch,
        *,
        images_per_prompt: int,
        seed: int,
        trajectory: bool = True,
        on_chunk: OnChunk | None = None,
    ) -> Rollout:
        """Ask for a rollout and wait for it; see `submit` and `Pending.result`."""
        pending = self.submit(
            prompts, images_per_prompt=images_per_prompt, seed=seed, trajectory=trajectory, urgent=True
        )
        return pending.result(on_chunk)

    @abstractmethod
    def score(
        self, images: UInt8, prompts: PromptBatch, *, images_per_prompt: int, on_chunk: OnChunk | None = None
    ) -> Rollout:
        """Score images that were made before, and wait for it; no sampler and no weights take part.

        Args:
            images: uint8 [n, H, W, 3], prompt-major.
            prompts: of the images, n / images_per_prompt of them.
            on_chunk: as of `Pending.result`.

        Returns:
            The images with their rewards, without trajectories; made by weights version 0.

        Raises:
            ValueError: no prompts, or other images than `prompts` and `images_per_prompt` make.
            ClusterError: actors keep dying.
            Exception: what the reward raised, as itself.
        """

    def release(self, rollout: Rollout) -> None:
        """Use the memory of a rollout again for those to come: nobody may look at its arrays from now on.

        The rewards stay. Rollouts that are never released go as any object does.

        Raises:
            ValueError: it was released already.
        """
        for array in arrays_of(rollout).values():
            if isinstance(array, np.ndarray):
                buffers.release(array)

    def storage(self) -> dict[str, float]:
        """Metrics of where rollouts lie; nothing by default."""
        return {}

    def restore(self, rollout: Rollout, error: RowsLostError) -> Rollout:
        """The rollout with what was lost of it made again, from the same noise under the same weights.

        Raises:
            RowsLostError: `error`, where nothing can be made again.
            ClusterError: it is lost again and again.
        """
        raise error

    def reading(self, rollout: Rollout, work: Callable[[Rollout], None]) -> Rollout:
        """Do work that reads the arrays of a rollout, and again where some were lost; the rollout, whole."""
        while True:
            try:
                work(rollout)
                return rollout
            except RowsLostError as error:
                rollout = self.restore(rollout, error)

    @property
    @abstractmethod
    def reward_identity(self) -> dict[str, Any]:
        """Name and version of the reward, as `prdp.rewards.base.identity_of` tells them."""

    @abstractmethod
    def status(self) -> dict[str, Any]:
        """Who works where, for people: JSON-able.

        Returns:
            {"actors": [{"name", "kind", "node", "pid", "state", "restarts", "chunks", and of one at work "doing": what,
            "since": unix seconds, "limit_seconds": after which it is replaced, or None, "silent": whether that is far
            longer than usual}],
            "last_fault": {"time": unix seconds, "text": what happened} or None}
        """

    def export_metrics(self, run: str, metrics: Mapping[str, float], epoch: int) -> None:  # noqa: B027 - an offer
        """Offer the numbers of an epoch to whatever watches the cluster; nothing does by default."""

    @abstractmethod
    def close(self) -> None:
        """Let go of samplers and rewards; closing twice is fine."""


class ClusterError(ResumableError, RuntimeError):
    """The cluster cannot do the work: actors keep dying, for instance."""


class ClusterSetupError(UserError, ClusterError):
    """The cluster that was asked for is not there, or lacks the processors or GPUs asked for."""


class WeightsMismatchError(ClusterError):
    """A sampler holds, or sampled with, other weights than were published."""


class RewardWorker:
    """Scores images with one reward and checks every answer.

    Args:
        reward: the `reward` section of the configuration, for `prdp.rewards.build_reward`; or a reward already built.
        retries: how often a call that raised what may pass is tried again, with growing pauses from `pause_seconds` on.
            Rewards that set `retries_itself` are asked once.
    """

    def __init__(self, reward: Mapping[str, Any] | Reward, retries: int = 0, pause_seconds: float = 1.0) -> None:
        if isinstance(reward, Mapping):
            from prdp.rewards import build_reward

            self.reward: Reward = build_reward(reward)
        else:
            self.reward = reward
        self._retries = 0 if getattr(self.reward, "retries_itself", False) else retries
        self._pause_seconds = pause_seconds

    def score(
        self, images: UInt8, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]], where: str
    ) -> tuple[Float64, dict[str, Float64]]:
        """Score uint8 images [n, H, W, 3]: rewards float64 [n] and sub-scores {name: float64 [n]}.

        Raises:
            RewardFaultError: the reward raised, or answered with something else; see `prdp.rewards.scoring.scored`.
            RewardUnavailableError: it raised what may pass, in every attempt.
        """
        for attempt in range(1, self._retries + 2):
            try:
                return scored(self.reward, images, prompts, metadata, where)
            except RewardUnavailableError as error:
                if attempt > self._retries:
                    told, newline, lines = str(error).partition("\n")
                    times = f" (attempt {attempt} of {attempt})" if attempt > 1 else ""
                    raise RewardUnavailableError(f"{told}{times}{newline}{lines}") from error.__cause__
                pause = back_off(attempt, self._pause_seconds)
                told = first_line(error)
                _log.warning("%s; tried again in %.1f s (%d of %d)", told, pause, attempt, self._retries)
                time.sleep(pause)
        raise AssertionError("unreachable")

    @property
    def waits_seconds(self) -> float:
        """Seconds that a call may spend on waiting: for a server that is away, and between attempts."""
        pauses = sum(back_off(attempt, self._pause_seconds) for attempt in range(1, self._retries + 1))
        return waits_of(self.reward) * (self._retries + 1) + pauses

    def identity(self) -> dict[str, Any]:
        """Name and version of the reward, and of its terms where it has some."""
        return identity_of(self.reward)


def back_off(failures: int, first_seconds: float = 1.0, longest_seconds: float = 30.0) -> float:
    """Seconds to wait after so many failures in a row: doubling, up to a limit."""
    return min(first_seconds * 2.0 ** min(failures - 1, 30), longest_seconds)


def identity_of_worker(worker: RewardLike) -> dict[str, Any]:
    """What a reward worker says about its reward; nothing when it is not one that tells."""
    tell = getattr(worker, "identity", None)
    return dict(tell()) if callable(tell) else {}


def waits_of_worker(worker: RewardLike) -> float:
    """Seconds that a reward worker may wait for others in one call; 0 when it does not tell."""
    return float(getattr(worker, "waits_seconds", 0.0))


def describe_chunk(chunk: PromptBatch) -> str:
    """Where a chunk lies, for messages: 'epoch 3, prompts 8 to 11'."""
    return f"epoch {chunk.epoch}, prompts {chunk.offset} to {chunk.offset + len(chunk) - 1}"


PARTS = ("stored", "conditions")
"""Fields of a rollout that are mappings of arrays with a row an image, and with a row a prompt."""


def arrays_of(rollout: Rollout) -> dict[str, RowArray]:
    """What a sampler has made: 'images', and '<part>/<name>' -> array."""
    found: dict[str, RowArray] = {"images": rollout.images}
    return found | {f"{part}/{name}": value for part in PARTS for name, value in getattr(rollout, part).items()}


def with_arrays(rollout: Rollout, arrays: Mapping[str, RowArray]) -> Rollout:
    """The rollout with other arrays in the places of `arrays_of`."""
    parts: dict[str, dict[str, RowArray]] = {part: {} for part in PARTS}
    for key, value in arrays.items():
        part, _, name = key.partition("/")
        if name:
            parts[part][name] = value
    return dataclasses.replace(
        rollout, images=arrays["images"], stored=parts["stored"], conditions=parts["conditions"]
    )


Identity = tuple[int, str]
"""Version and checksum of published weights."""


def acknowledged(published: Identity, sampler: str, answer: Identity) -> None:
    """Check that a sampler answered the version and checksum that were published.

    Raises:
        WeightsMismatchError: naming the sampler and both values.
    """
    if tuple(answer) != published:
        raise WeightsMismatchError(
            f"{sampler} acknowledged weights version {answer[0]}, checksum {answer[1]}, but version {published[0]}, "
            f"checksum {published[1]} was published"
        )


def sampled(sampler: SamplerLike, chunk: PromptBatch, images_per_prompt: int, seed: int, trajectory: bool) -> Rollout:
    """Let a sampler work on a chunk and note the seconds it took."""
    start = time.perf_counter()
    rollout = sampler.sample(chunk, images_per_prompt, seed, trajectory)
    return dataclasses.replace(rollout, seconds={**rollout.seconds, "sample": time.perf_counter() - start})


def check_rollout(rollout: Rollout, chunk: PromptBatch, images_per_prompt: int, published: Identity | None) -> None:
    """Check that a rollout answers the chunk asked for, in full, under the published weights (any, when None).

    Raises:
        WeightsMismatchError: it was made by another weights version or checksum.
        ValueError: it holds other prompts or another number of images.
    """
    made_by = (rollout.weights_version, rollout.weights_checksum)
    if published is not None and made_by != published:
        raise WeightsMismatchError(
            f"the rollout of {describe_chunk(chunk)} was made by weights version {made_by[0]}, checksum {made_by[1]}, "
            f"but version {published[0]}, checksum {published[1]} was published"
        )
    if rollout.prompts.offset != chunk.offset or rollout.prompts.texts != chunk.texts:
        answered = describe_chunk(rollout.prompts)
        raise ValueError(f"asked for {describe_chunk(chunk)}, the sampler answered with {answered} or other texts")
    expected = len(chunk) * images_per_prompt
    if len(rollout) != expected:
        raise ValueError(
            f"the rollout of {describe_chunk(chunk)} holds {len(rollout)} images, expected {expected} "
            f"({len(chunk)} prompts of {images_per_prompt} images)"
        )


def check_request(prompts: PromptBatch, images_per_prompt: int) -> None:
    """Refuse an empty request before any work starts."""
    if not len(prompts):
        raise ValueError(f"epoch {prompts.epoch} has no prompts to sample: the prompt list is empty")
    if images_per_prompt < 1:
        raise ValueError(f"images_per_prompt must be at least 1, got {images_per_prompt}")


def check_images(images: UInt8, prompts: PromptBatch, images_per_prompt: int) -> None:
    """Refuse images to score that are none, or not of these prompts, before any work starts."""
    check_request(prompts, images_per_prompt)
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise ValueError(f"images to score are {images.dtype} {list(images.shape)}, expected uint8 [n, H, W, 3]")
    if len(images) != len(prompts) * images_per_prompt:
        raise ValueError(
            f"{len(images)} images to score, expected {len(prompts) * images_per_prompt} "
            f"({len(prompts)} prompts of {images_per_prompt} images)"
        )
