"""The few dataclasses that flow between the rooms: prompts in, rollouts out, weights back."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from prdp.support.remote_rows import RemoteRows, RowArray

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
UInt8 = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]
Times = Literal["uniform", "stratified", "sampler", "sampler_stratified"]
"""Which times denoising evidence is drawn at, see `prdp.diffusion.process.Draws`."""


@dataclass(frozen=True)
class PromptBatch:
    """Consecutive prompts of one epoch, or a chunk of them.

    Attributes:
        epoch: epoch the prompts belong to, from 0.
        offset: position of the first prompt within its epoch; positions, not texts, seed the noise, so that a prompt
            that occurs twice in an epoch gets two different groups of images.
        texts: the prompts.
        metadata: one mapping per prompt, handed to the reward unchanged.
        indices: where each prompt stands in its source, for the run's log of prompts; empty where no source is behind.
    """

    epoch: int
    offset: int
    texts: tuple[str, ...]
    metadata: tuple[Mapping[str, Any], ...]
    indices: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.texts) != len(self.metadata):
            raise ValueError(f"PromptBatch has {len(self.texts)} texts but {len(self.metadata)} metadata entries")
        if self.indices and len(self.texts) != len(self.indices):
            raise ValueError(f"PromptBatch has {len(self.texts)} texts but {len(self.indices)} indices")

    def __len__(self) -> int:
        return len(self.texts)

    def chunks(self, prompts_per_chunk: int) -> list[PromptBatch]:
        """Cut into chunks of whole prompts; the cut depends on the configuration alone, never on who works on it."""
        if prompts_per_chunk < 1:
            raise ValueError(f"prompts_per_chunk must be at least 1, got {prompts_per_chunk}")
        return [
            PromptBatch(
                self.epoch,
                self.offset + start,
                self.texts[start : start + prompts_per_chunk],
                self.metadata[start : start + prompts_per_chunk],
                self.indices[start : start + prompts_per_chunk],
            )
            for start in range(0, len(self), prompts_per_chunk)
        ]


@dataclass(frozen=True)
class Rollout:
    """Groups of images, and what is learned from them; n = prompts * images_per_prompt, prompt-major order.

    Among actors, images, conditions and what is stored beyond numbers may lie elsewhere, as `RemoteRows`: these are
    indexed as arrays are, and `numpy.asarray` fetches all of one.

    Attributes:
        prompts: the prompts that were sampled.
        images_per_prompt: B of the paper.
        images: uint8 [n, H, W, 3].
        weights_version, weights_checksum: of the policy that sampled.
        stored: name -> array [n, ...], what the evidence keeps of the sampler's chains; empty for images that are not
            learned from. The class of the evidence, in prdp/evidence/, says what is in it. Numbers of an image or of
            its columns, [n] and [n, T], are always here.
        conditions: name -> array [prompts, ...], what the prompts became for the network; empty likewise.
        empty_conditions: name -> array [1, ...], what the empty prompt became; empty for a family without guidance.
        rewards: float64 [n], None until scored.
        sub_scores: name -> float64 [n]; NaN where a sub-score does not apply.
        seconds: wall time per stage, e.g. {"sample": 1.2, "score": 0.1}.
        network_passes: float64 [n], passes of the network that drew each image, where guidance takes two a step; None
            for images that nobody drew.
    """

    prompts: PromptBatch
    images_per_prompt: int
    images: UInt8 | RemoteRows
    weights_version: int
    weights_checksum: str
    stored: Mapping[str, RowArray] = field(default_factory=dict)
    conditions: Mapping[str, RowArray] = field(default_factory=dict)
    empty_conditions: Mapping[str, RowArray] = field(default_factory=dict)
    rewards: Float64 | None = None
    sub_scores: Mapping[str, Float64] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    network_passes: Float64 | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def group_ids(self) -> Int64:
        """Int64 [n]: position in the epoch of each image's prompt."""
        return self.prompts.offset + np.repeat(np.arange(len(self.prompts), dtype=np.int64), self.images_per_prompt)

    @property
    def image_prompts(self) -> list[str]:
        """The prompt of each image, length n."""
        return [text for text in self.prompts.texts for _ in range(self.images_per_prompt)]

    @property
    def image_metadata(self) -> list[Mapping[str, Any]]:
        """The metadata of each image's prompt, length n."""
        return [meta for meta in self.prompts.metadata for _ in range(self.images_per_prompt)]

    def numbers(self, name: str) -> np.ndarray:
        """What is stored of each image or of each of its columns: a number, [n] or [n, T]."""
        return np.asarray(self.stored[name])

    def storing(self, **arrays: np.ndarray) -> Rollout:
        """The same rollout with these arrays in `stored`, beside the others."""
        return dataclasses.replace(self, stored={**self.stored, **arrays})

    def scored(self, rewards: Float64, sub_scores: Mapping[str, Float64]) -> Rollout:
        """The same rollout with its rewards."""
        return dataclasses.replace(self, rewards=rewards, sub_scores=dict(sub_scores))

    def took(self, stage: str, seconds: float) -> Rollout:
        """The same rollout, with the seconds of a further stage."""
        return dataclasses.replace(self, seconds={**self.seconds, stage: seconds})


@dataclass(frozen=True)
class Weights:
    """The trained tensors of one policy version, as published by the learner to the samplers.

    Attributes:
        version: number of optimizer steps behind these tensors; 0 is the untouched start.
        tensors: name -> array, float32.
        checksum: hex digest over names, shapes, dtypes and bytes.
    """

    version: int
    tensors: Mapping[str, np.ndarray]
    checksum: str

    @classmethod
    def of(cls, version: int, tensors: Mapping[str, np.ndarray]) -> Weights:
        """Wrap tensors and compute their checksum."""
        return cls(version, dict(tensors), tensors_checksum(tensors))


def tensors_checksum(tensors: Mapping[str, np.ndarray]) -> str:
    """Hex digest (64 bits) of named arrays, independent of their order."""
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        digest.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
