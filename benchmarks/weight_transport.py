"""Seconds until two samplers have acknowledged new weights: through Ray's object store, and straight by gloo.

    python benchmarks/weight_transport.py [--mb 100 1000] [--repeats 5] [--samplers 2]

Real Ray, samplers that only copy the tensors and compute their checksum, all on this machine and in turns: every repeat
publishes the same new weights first one way, then the other. Prints the median seconds from `publish` to the last
acknowledgement, in all and without the copy and the checksum, which both ways have in common.
"""

from __future__ import annotations

import argparse
import functools
import os
import time
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from prdp.cluster import build_workforce
from prdp.cluster.base import RewardWorker
from prdp.cluster.ray_session import connect
from prdp.config import ClusterConfig
from prdp.types import PromptBatch, Rollout, Weights, tensors_checksum

TENSORS = 100
TRANSPORTS = ("object_store", "gloo")


class Holder:
    """A sampler that holds weights, and says in its rollouts how long it took to take them over."""

    def __init__(self) -> None:
        import torch.distributed  # noqa: F401 - samplers have it before any weights come

        self.version, self.checksum, self.seconds = 0, "", 0.0

    def load_weights(self, weights: Weights) -> tuple[int, str]:
        start = time.perf_counter()
        self.version = weights.version
        self.checksum = tensors_checksum({name: np.array(value) for name, value in weights.tensors.items()})
        self.seconds = time.perf_counter() - start
        return self.version, self.checksum

    def sample(self, prompts: PromptBatch, images_per_prompt: int, seed: int, trajectory: bool = True) -> Rollout:
        count = len(prompts) * images_per_prompt
        return Rollout(
            prompts=prompts,
            images_per_prompt=images_per_prompt,
            images=np.zeros((count, 1, 1, 3), np.uint8),
            weights_version=self.version,
            weights_checksum=self.checksum,
            seconds={"load": self.seconds},
        )


class Nothing:
    """A reward of nothing."""

    name, version = "nothing", "1"

    def score(self, images: Any, prompts: Any, metadata: Any) -> Any:
        return np.zeros(len(images)), {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--samplers", type=int, default=2)
    options = parser.parse_args()
    connect(ClusterConfig(kind="ray"))
    workforces = {}
    for transport in TRANSPORTS:
        config = ClusterConfig(kind="ray", samplers=options.samplers, weight_transport=transport)
        reward = functools.partial(RewardWorker, Nothing())
        workforces[transport] = build_workforce(config, Holder, reward, 1, "cpu")
        deliver(workforces[transport], weights_of(1, 0), options.samplers)
    for megabytes in options.mb:
        taken: dict[str, list[tuple[float, float]]] = {transport: [] for transport in TRANSPORTS}
        for repeat in range(options.repeats):
            weights = weights_of(megabytes, 1 + repeat)
            for transport in TRANSPORTS:
                taken[transport].append(deliver(workforces[transport], weights, options.samplers))
        for transport, times in taken.items():
            whole, alone = (median(column) for column in zip(*times, strict=True))
            print(
                f"{megabytes} MB to {options.samplers} samplers, {transport}: {whole:.2f} s, {alone:.2f} s on the way"
            )
    for workforce in workforces.values():
        workforce.close()


def weights_of(megabytes: int, version: int) -> Weights:
    """Random weights of a size."""
    draw = np.random.default_rng(version)
    each = megabytes * 10**6 // 4 // TENSORS
    return Weights.of(version, {f"tensor {index}": draw.random(each, np.float32) for index in range(TENSORS)})


def deliver(workforce: Any, weights: Weights, samplers: int) -> tuple[float, float]:
    """Publish, and have each sampler do a chunk under the weights; wall seconds, and those not spent on taking over."""
    texts = ("",) * samplers
    prompts = PromptBatch(0, 0, texts, tuple({} for _ in texts))
    start = time.perf_counter()
    workforce.publish(weights)
    loads: list[float] = []
    workforce.sample(
        prompts, images_per_prompt=1, seed=0, on_chunk=lambda chunk: loads.append(chunk.seconds.get("load", 0.0))
    )
    whole = time.perf_counter() - start
    return whole, whole - max(loads)


if __name__ == "__main__":
    main()
