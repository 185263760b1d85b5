"""The images of a set where a sampler would draw: behind the same contract, so that actors share the reading out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prdp.config import LearnerConfig, ModelConfig, SamplerConfig
from prdp.diffusion import build_policy, family_of
from prdp.diffusion.policy import Policy
from prdp.diffusion.sampler import Sampler
from prdp.evaluation.store import FINAL_LATENTS
from prdp.image_sets.fitting import all_fitted
from prdp.image_sets.reading import StoredPrompts
from prdp.types import Float32, PromptBatch, Rollout, UInt8, Weights


@dataclass(frozen=True)
class Encoding:
    """Latents of stored images by a policy's VAE.

    Attributes:
        policy: whose.
        size: (H, W) of its pictures; others are brought to it by `prdp.image_sets.fitting`.
        microbatch: images at a time.
    """

    policy: Policy
    size: tuple[int, int]
    microbatch: int

    def __call__(self, images: UInt8) -> Float32:
        """Float32 [n, C, h, w] of uint8 [n, H, W, 3]."""
        seen = all_fitted(images, self.size)
        parts = [
            self.policy.encode_images(seen[begin : begin + self.microbatch]).cpu().numpy()
            for begin in range(0, len(seen), self.microbatch)
        ]
        return np.concatenate(parts)


class StoredSampler:
    """Gives what a set has of the prompts to learn from, and draws for evaluations.

    Args:
        policy: encodes the prompts, and perhaps the images.
        sampler: draws.
        prompts: of the sets; a prompt is found by its place in them.
        encoding: makes the latents; None takes those of the set.
    """

    def __init__(
        self, policy: Policy, sampler: Sampler, prompts: StoredPrompts, encoding: Encoding | None = None
    ) -> None:
        self._policy, self._sampler, self._prompts, self._encoding = policy, sampler, prompts, encoding

    @property
    def policy(self) -> Policy:
        """That draws for evaluations."""
        return self._policy

    def load_weights(self, weights: Weights) -> tuple[int, str]:
        """Of evaluations; see `Sampler.load_weights`."""
        return self._sampler.load_weights(weights)

    def sample(self, prompts: PromptBatch, images_per_prompt: int, seed: int, trajectory: bool = True) -> Rollout:
        """With `trajectory` the stored images of the prompts, which have no seed; without, what the sampler draws.

        Raises:
            StartError: a file of the set is missing or was changed; names it.
        """
        if not trajectory:
            return self._sampler.sample(prompts, images_per_prompt, seed, trajectory=False)
        start = time.perf_counter()
        images = np.concatenate([self._prompts.images(index, images_per_prompt) for index in prompts.indices])
        if self._encoding is None:
            latents = np.concatenate([self._prompts.latents(index, images_per_prompt) for index in prompts.indices])
        else:
            latents = self._encoding(images)
        fields, empty = self._sampler.encode(prompts.texts).to_arrays()
        version, checksum = self._sampler.holds
        return Rollout(
            prompts=prompts,
            images_per_prompt=images_per_prompt,
            images=images,
            weights_version=version,
            weights_checksum=checksum,
            stored={FINAL_LATENTS: latents},
            conditions=fields,
            empty_conditions=empty,
            seconds={"sample": time.perf_counter() - start},
        )


def build_stored_sampler(
    model: ModelConfig,
    learner: LearnerConfig,
    sampler: SamplerConfig,
    seed: int,
    folders: Sequence[str],
    skill: str | None,
    encode: bool,
) -> StoredSampler:
    """Of sections of a configuration; picklable as a `functools.partial`, so that an actor can call it."""
    policy = build_policy(model, learner, seed=seed, keep_reference=False)
    size = family_of(model).picture_size_of(model)
    encoding = Encoding(policy, size, sampler.microbatch) if encode else None
    return StoredSampler(policy, Sampler(policy, sampler), StoredPrompts(folders, skill), encoding)
