"""A sampler and a reward of numpy alone, pure functions of their arguments; what goes wrong is written in the data.

A prompt's metadata may hold {"sampler": fault} or {"reward": fault}; with {"once": marker file} it strikes once.
Weights may hold a tensor named after a fault of binding.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prdp.cluster.base import RewardWorker, arrays_of
from prdp.types import PromptBatch, Rollout, UInt8, Weights, tensors_checksum

STEPS, SIDE = 3, 4


class AwkwardError(Exception):
    """An error that pickle cannot bring back: its constructor wants two arguments."""

    def __init__(self, part: str, reason: str) -> None:
        super().__init__(f"{part} {reason}")


class StubSampler:
    """Noise scaled by the one weight; images are the noise in bytes."""

    def __init__(self, folder: str = "") -> None:
        if folder:
            raise FileNotFoundError(f"no model folder '{folder}'")
        self.version, self.tensors = 0, {"scale": np.ones(1, np.float32)}

    def load_weights(self, weights: Weights) -> tuple[int, str]:
        if "unknown" in weights.tensors:
            raise KeyError("tensor 'unknown' is not one of the model")
        self.version = weights.version
        self.tensors = {name: np.array(value) for name, value in weights.tensors.items()}
        if "misbound" in self.tensors:
            self.tensors["scale"] = self.tensors["scale"] + 1
        return self.version, tensors_checksum(self.tensors)

    def sample(self, prompts: PromptBatch, images_per_prompt: int, seed: int, trajectory: bool = True) -> Rollout:
        fault = due("sampler", prompts.metadata)
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "vanish":
            os._exit(0)
        if fault == "exit":
            sys.exit(0)
        if fault == "raise":
            raise ValueError("latents of step 3 are not finite")
        if fault == "raise_awkward":
            raise AwkwardError("unet", "broke")
        if fault.startswith("await:"):
            await_pipe(fault.removeprefix("await:"))
        if fault == "short":
            images_per_prompt -= 1
        noise = np.stack(
            [
                np.random.default_rng([seed, prompts.epoch, prompts.offset + group, image]).standard_normal(
                    (STEPS + 1, 1, SIDE, SIDE), np.float32
                )
                for group in range(len(prompts))
                for image in range(images_per_prompt)
            ]
        )
        noise *= self.tensors["scale"]
        return Rollout(
            prompts=prompts,
            images_per_prompt=images_per_prompt,
            stored={
                "latents": noise,
                "base_output": -noise[:, 1:],
                "log_ratio": noise[:, 1:].mean((2, 3, 4)),
                "steps": np.tile(np.arange(STEPS), (len(noise), 1)),
            }
            if trajectory
            else {},
            conditions={"states": np.array([[len(text)] for text in prompts.texts], np.float32)} if trajectory else {},
            images=(np.clip(noise[:, -1, 0, :, :, None].repeat(3, -1), -4, 4) * 31 + 128).astype(np.uint8),
            weights_version=self.version - (fault == "stale"),
            weights_checksum=tensors_checksum(self.tensors),
        )


class StubReward:
    """Mean brightness, plus what the metadata say; the sub-score is the length of the prompt."""

    name = "brightness"
    version = "1"

    def score(self, images: UInt8, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Any:
        fault = due("reward", metadata)
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "raise":
            raise ZeroDivisionError("no such mood")
        if fault == "write":
            images[...] = 0
        if fault == "insist":
            images.setflags(write=True)
            images[...] = 0
        if fault == "exit":
            sys.exit(0)
        if fault.startswith("tell:"):
            tell_pipe(fault.removeprefix("tell:"))
        if fault.startswith("hang:"):
            await_pipe(fault.removeprefix("hang:"), 600.0)
        if fault == "warn":
            logging.getLogger("prdp.rewards").warning("the lamp is dim")
        rewards = images.mean((1, 2, 3)) / 255 + np.array([meta["bonus"] for meta in metadata])
        if fault == "nan":
            rewards[1] = np.nan
        lengths = np.array([len(text) for text in prompts], float)
        return rewards[:-1] if fault == "short" else rewards, {"length": lengths}


def build_worker() -> RewardWorker:
    """A reward worker around the stub."""
    return RewardWorker(StubReward())


class ThreadReport:
    """A reward worker that answers the thread settings of its process instead of scores."""

    def __init__(self) -> None:
        self.threads_before_torch = -1 if "torch" in sys.modules else int(os.environ["OMP_NUM_THREADS"])
        import torch

        self.torch = torch

    def score(
        self, images: UInt8, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]], where: str
    ) -> tuple[Any, dict[str, Any]]:
        count = len(images)
        seen = {"torch": self.torch.get_num_threads(), "before_torch": self.threads_before_torch}
        return np.zeros(count), {name: np.full(count, float(value)) for name, value in seen.items()}


def due(part: str, metadata: Sequence[Mapping[str, Any]]) -> str:
    """The fault that strikes this part now, or ''."""
    for meta in metadata:
        if part in meta:
            marker = Path(meta["once"]) if "once" in meta else None
            if marker is None or not marker.exists():
                if marker is not None:
                    marker.touch()
                return str(meta[part])
    return ""


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


def prompts(count: int, faults: Mapping[int, Mapping[str, Any]] | None = None, offset: int = 0) -> PromptBatch:
    """Prompts of epoch 3 whose metadata move the reward; `faults` of some positions are added to it."""
    extra = faults or {}
    return PromptBatch(
        3,
        offset,
        tuple(f"prompt {'x' * (index % 3)}" for index in range(count)),
        tuple({"bonus": index / 10, **extra.get(index, {})} for index in range(count)),
    )


def weights(version: int = 5, scale: float = 0.5, fault: str = "") -> Weights:
    """A published version."""
    tensors = {"scale": np.array([scale], np.float32)}
    return Weights.of(version, {**tensors, fault: np.zeros(1, np.float32)} if fault else tensors)


def differences(left: Rollout, right: Rollout) -> list[str]:
    """Names of what is not equal bit for bit; metadata, where faults stand, and wall times aside."""

    def facts(rollout: Rollout) -> dict[str, Any]:
        return {
            "texts": rollout.prompts.texts,
            "position": (rollout.prompts.epoch, rollout.prompts.offset, rollout.images_per_prompt),
            "weights": (rollout.weights_version, rollout.weights_checksum),
            **{name: content(array) for name, array in arrays_of(rollout).items()},
            "rewards": content(rollout.rewards),
            "sub_scores": {name: content(values) for name, values in rollout.sub_scores.items()},
        }

    one, two = facts(left), facts(right)
    return [name for name in one.keys() | two.keys() if one.get(name) != two.get(name)]


def content(array: Any) -> tuple[str, tuple[int, ...], bytes]:
    """All there is to an array."""
    return array.dtype.str, array.shape, np.asarray(array).tobytes()
