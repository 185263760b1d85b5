"""Seconds an epoch takes when sampling, scoring and learning overlap, as a share of when they take turns.

    python benchmarks/asynchronous.py

Real Ray actors, one sampler and one reward actor, that only wait: every stage of an epoch takes the same time. The loop
is that of `prdp train` (`RolloutQueue`), with a learner that waits too. Each row is another cut into chunks: with one
chunk an epoch the three stages follow each other, with more of them scoring overlaps sampling even when taking turns.
Repeats alternate, medians are printed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial

import numpy as np
from stub_stages import Numbers, WaitingReward, WaitingSampler

from prdp.cluster import build_workforce
from prdp.cluster.base import Workforce
from prdp.cluster.rollout_queue import RolloutQueue
from prdp.config import ClusterConfig
from prdp.prompts.stream import PromptStream
from prdp.types import Weights

PROMPTS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each stage of an epoch (%(default)g)")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    each = options.seconds / PROMPTS
    print("chunks an epoch  staleness 0  staleness 1     staleness 2")
    for chunks in (1, 2, 4, 8):
        workforce = build_workforce(
            ClusterConfig(kind="ray", samplers=1),
            partial(WaitingSampler, each),
            partial(WaitingReward, each),
            PROMPTS // chunks,
        )
        times: dict[int, list[float]] = {0: [], 1: [], 2: []}
        for _ in range(options.repeats):
            for staleness, seconds in times.items():
                seconds.append(epoch_seconds(workforce, staleness, options.epochs, options.seconds))
        workforce.close()
        median = {staleness: statistics.median(seconds) for staleness, seconds in times.items()}
        shares = "  ".join(f"{median[key]:5.2f} s = {median[key] / median[0]:.2f}x" for key in (1, 2))
        print(f"{chunks:>15}  {median[0]:9.2f} s  {shares}", flush=True)


def epoch_seconds(workforce: Workforce, staleness: int, epochs: int, learning: float) -> float:
    """Wall seconds of an epoch, over a whole run with its beginning and end."""
    rollouts = RolloutQueue(
        workforce,
        PromptStream(Numbers(10_000), seed=0),
        prompts_per_epoch=PROMPTS,
        images_per_prompt=2,
        seed=0,
        epochs=epochs,
        max_staleness=staleness,
    )
    start = time.perf_counter()
    for epoch in range(epochs):
        rollouts.fill(epoch, Weights.of(epoch, {"w": np.zeros(1, np.float32)}))
        rollout = rollouts.next()
        time.sleep(learning)
        workforce.release(rollout)
    return (time.perf_counter() - start) / epochs


if __name__ == "__main__":
    main()
