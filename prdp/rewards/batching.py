"""Scoring in batches that fit into memory, and the device to do it on."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from prdp.config import DEVICE

_log = logging.getLogger(__name__)

DEFAULT_BATCH_SIZE = 16


class Batches:
    """Cuts images into batches; a batch that runs out of GPU memory is halved, from then on for good.

    The number of images in a batch is `batch_size`, or else as many as `memory_mib` holds at `image_mib` each.

    Args:
        reward: its name, for messages.
        batch_size: images per batch; None to derive it.
        memory_mib: budget for one batch in MiB; None for `DEFAULT_BATCH_SIZE` images.
        image_mib: MiB that one image takes at the peak of a pass, activations included and weights not.

    Raises:
        ValueError: a size or budget that is not above 0, or both given; by argument.
    """

    def __init__(
        self, reward: str, batch_size: int | None = None, memory_mib: float | None = None, image_mib: float = 64.0
    ) -> None:
        check_batching(batch_size, memory_mib)
        self._reward = reward
        if batch_size is None:
            batch_size = DEFAULT_BATCH_SIZE if memory_mib is None else max(1, math.floor(memory_mib / image_mib))
        self.size = batch_size
        self._halved = False

    def map(self, function: Callable[[slice], Any], count: int) -> np.ndarray:
        """Call `function` on slices that cover 0 to `count` in order; its arrays, joined along the first axis.

        Args:
            function: takes a slice of at most `size` images, returns one row per image, as an array.
            count: number of images, at least 1.

        Raises:
            MemoryError: not even one image fits into the GPU's memory.
        """
        rows: list[np.ndarray] = []
        start = 0
        while start < count:
            part = slice(start, min(start + self.size, count))
            result = self._attempt(function, part)
            if result is None:
                self._halve(part.stop - part.start)
                continue
            rows.append(result)
            start = part.stop
        return np.concatenate(rows)

    def _attempt(self, function: Callable[[slice], Any], part: slice) -> np.ndarray | None:
        """The answer, or None when the GPU ran out of memory; the failed pass is let go of on return."""
        try:
            return np.asarray(function(part))
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
            if part.stop - part.start == 1:
                raise MemoryError(
                    f"reward '{self._reward}': not even one image fits into the GPU's memory as it is: {error}"
                ) from None
            return None

    def _halve(self, tried: int) -> None:
        sys.modules["torch"].cuda.empty_cache()
        self.size = max(1, tried // 2)
        if not self._halved:
            self._halved = True
            _log.warning(
                "reward '%s': %d images at once exceed the GPU's memory; going on with %d, and fewer if need be",
                self._reward,
                tried,
                self.size,
            )


def check_batching(batch_size: int | None, memory_mib: float | None) -> None:
    """Raise ValueError for a batch size or a budget that is not above 0, and for both at once."""
    if batch_size is not None and memory_mib is not None:
        raise ValueError(f"batch_size={batch_size} and memory_mib={memory_mib}: one of them decides, the other is null")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1, or null")
    if memory_mib is not None and not memory_mib > 0:
        raise ValueError(f"memory_mib={memory_mib}: must be above 0, or null")


def check_device(device: str) -> None:
    """Raise ValueError for a device of another form than auto, cpu, mps, cuda or cuda:<number>."""
    if not DEVICE.allows(device):
        raise ValueError(f"device={device}: must be {DEVICE.words}")


def choose_device(reward: str, device: str = "auto") -> str:
    """The torch device to score on: 'auto' is the GPU that this process sees, or else the CPU, with a warning.

    Args:
        reward: its name, for the message.
        device: auto, cpu, mps, cuda or cuda:<number>.

    Raises:
        ValueError: a GPU was asked for by name and is not there, or what `check_device` raises.
    """
    import torch

    check_device(device)
    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        _log.warning(
            "reward '%s' runs on the CPU: this process sees no GPU; actors get theirs by cluster.reward_gpus", reward
        )
        return "cpu"
    kind, _, number = device.partition(":")
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[kind]
    if int(number or 0) >= there:
        raise ValueError(
            f"device={device}: reward '{reward}' sees {there or 'no'} such device(s); use device=auto or cpu, and give "
            "actors a GPU by cluster.reward_gpus"
        )
    return device


def _out_of_memory(error: RuntimeError) -> bool:
    torch: Any = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)
