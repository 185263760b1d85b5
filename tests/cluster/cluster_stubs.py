"""A sampler and a reward of numpy alone, pure functions of their arguments, with faults to order."""

from __future__ import annotations

import dataclasses
import os
import select
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prdp.cluster.base import RewardWorker
from prdp.types import PromptBatch, Rollout, UInt8, Weights, tensors_checksum

STEPS, SIDE = 3, 4


@dataclasses.dataclass(frozen=True)
class Fault:
    """What goes wrong when the chunk or image group at `offset` comes up; once, where `once` names a marker file."""

    kind: str = ""
    offset: int = -1
    once: str = ""

    def due(self, offset: int) -> bool:
        """True when the fault strikes now."""
        if offset != self.offset:
            return False
        if self.once:
            if Path(self.once).exists():
                return False
            Path(self.once).touch()
        return True


class AwkwardError(Exception):
    """An error that pickle cannot bring back: its constructor wants two arguments."""

    def __init__(self, part: str, reason: str) -> None:
        super().__init__(f"{part} {reason}")


class StubSampler:
    """Noise scaled by the one weight; images are the noise in bytes."""

    def __init__(self, fault: Fault = Fault()) -> None:
        self.fault = fault
        self.version, self.tensors = 0, {"scale": np.ones(1, np.float32)}
        if fault.kind == "build":
            raise FileNotFoundError("no model folder 'nowhere'")

    def load_weights(self, weights: Weights) -> tuple[int, str]:
        self.version = weights.version
        self.tensors = {name: np.array(value) for name, value in weights.tensors.items()}
        if self.fault.kind == "bind":
            self.tensors["scale"] = self.tensors["scale"] + 1
        if self.fault.kind == "unknown_tensor":
            raise KeyError("tensor 'scale' is unknown to the model")
        return self.version, tensors_checksum(self.tensors)

    def sample(self, prompts: PromptBatch, images_per_prompt: int, seed: int, trajectory: bool = True) -> Rollout:
        version = self.version
        if self.fault.due(prompts.offset):
            if self.fault.kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault.kind == "raise":
                raise ValueError("latents of step 3 are not finite")
            if self.fault.kind == "raise_awkward":
                raise AwkwardError("unet", "broke")
            if self.fault.kind == "stale":
                version -= 1
            if self.fault.kind == "await_scoring":
                await_pipe(self.fault.once + ".pipe")
            if self.fault.kind == "short":
                images_per_prompt -= 1
        noise = np.stack(
            [
                np.random.default_rng([seed, prompts.epoch, prompts.offset + position, image]).standard_normal(
                    (STEPS + 1, 1, SIDE, SIDE), np.float32
                )
                for position in range(len(prompts))
                for image in range(images_per_prompt)
            ]
        ) * self.tensors["scale"]
        count = len(noise)
        images = (np.clip(noise[:, -1, 0, :, :, None].repeat(3, -1), -4, 4) * 31 + 128).astype(np.uint8)
        return Rollout(
            prompts=prompts,
            images_per_prompt=images_per_prompt,
            latents=noise if trajectory else noise[:, :0],
            reference_output=noise[:, 1:] / 2,
            log_prob_ref=np.full((count, STEPS), -0.5, np.float32),
            log_ratio=noise[:, 1:].mean((2, 3, 4)),
            images=images,
            weights_version=version,
            weights_checksum=tensors_checksum(self.tensors),
        )


class StubReward:
    """Mean brightness, plus what the metadata say; the sub-score is the length of the prompt."""

    name = "brightness"
    version = "1"

    def __init__(self, fault: Fault = Fault()) -> None:
        self.fault = fault

    def score(self, images: UInt8, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Any:
        rewards = images.mean((1, 2, 3)) / 255 + np.array([meta["bonus"] for meta in metadata])
        if self.fault.due(metadata[0]["position"]):
            if self.fault.kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault.kind == "raise":
                raise ZeroDivisionError("no such mood")
            if self.fault.kind == "nan":
                rewards[1] = np.nan
            if self.fault.kind == "short":
                rewards = rewards[:-1]
            if self.fault.kind == "tell":
                tell_pipe(self.fault.once + ".pipe")
        return rewards, {"length": np.array([len(prompt) for prompt in prompts], float)}


def build_worker(fault: Fault = Fault()) -> RewardWorker:
    """A reward worker around the stub."""
    return RewardWorker(StubReward(fault))


def await_pipe(path: str, seconds: float = 60.0) -> None:
    """Wait for a byte in a named pipe that somebody holds open."""
    pipe = os.open(path, os.O_RDWR)
    try:
        if not select.select([pipe], [], [], seconds)[0]:
            raise TimeoutError(f"nobody wrote to {path}")
    finally:
        os.close(pipe)


def tell_pipe(path: str) -> None:
    """Write a byte to a named pipe that somebody holds open."""
    pipe = os.open(path, os.O_RDWR)
    try:
        os.write(pipe, b"1")
    finally:
        os.close(pipe)


class ThreadReport:
    """A reward worker that answers the thread settings of its process instead of scores."""

    def __init__(self) -> None:
        self.before_torch = {name: os.environ.get(name, "") for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        import torch

        self.torch_threads = torch.get_num_threads()

    def score(
        self, images: UInt8, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]], where: str
    ) -> tuple[Any, dict[str, Any]]:
        seen = [self.torch_threads, *map(float, self.before_torch.values())]
        count = len(images)
        return np.zeros(count), {"threads": np.array(seen[:1] * count), "omp": np.array(seen[1:2] * count)}


def prompts(count: int, epoch: int = 3, offset: int = 0) -> PromptBatch:
    """Prompts whose metadata move the reward."""
    return PromptBatch(
        epoch,
        offset,
        tuple(f"prompt {'x' * (index % 3)}" for index in range(count)),
        tuple({"bonus": index / 10, "position": offset + index} for index in range(count)),
    )


def weights(version: int = 5, scale: float = 0.5) -> Weights:
    """A published version."""
    return Weights.of(version, {"scale": np.array([scale], np.float32)})


def differences(left: Rollout, right: Rollout) -> list[str]:
    """Names of what is not equal bit for bit; wall times aside."""
    found = [name for name in ("prompts", "images_per_prompt", "weights_version", "weights_checksum")
             if getattr(left, name) != getattr(right, name)]
    arrays = {field: (getattr(left, field), getattr(right, field)) for field in
              ("latents", "reference_output", "log_prob_ref", "log_ratio", "images", "rewards")}
    assert left.sub_scores.keys() == right.sub_scores.keys()
    arrays |= {name: (left.sub_scores[name], right.sub_scores[name]) for name in left.sub_scores}
    return found + [name for name, (one, two) in arrays.items()
                    if one.dtype != two.dtype or one.shape != two.shape or one.tobytes() != two.tobytes()]

