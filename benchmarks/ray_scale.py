"""What the driver and Ray cost when many samplers work: actors that wait as long as Stable Diffusion 1.5 samples.

    python benchmarks/ray_scale.py                     # 1, 8 and 64 samplers, for some minutes
    python benchmarks/ray_scale.py --samplers 64 --ranks 2 --store-gib 4

Each sampler waits and answers with trajectories of true size: 50 steps of 4 x 64 x 64 latents, with the reference's
outputs, and images of 512 x 512, for chunks of one prompt with 8 images. The seconds of a chunk vary (`--jitter`). What
an epoch lasts beyond the time of a greedy schedule of these chunks (whoever is free takes the next one at once) is the
overhead: it holds the driver's work, Ray's, and that of moving so many bytes on this machine, whose cores all actors
share. `--small` answers with trajectories of a hundredth of the size, and so leaves the moving out. Beside it: how much
of a core the driver uses, its memory, how much of a rollout it holds, the fullest the object store gets, and bytes
spilled to disk, which happens earlier with a small `--store-gib`. The first epoch counts apart: in it the object
store's memory is touched for the first time.

With `--ranks` so many learner ranks, actors too, read their parts of each rollout, a microbatch of 64 cells at a time;
the driver gives them references and waits. That comes after an epoch's sampling, and is no part of its seconds.
"""

from __future__ import annotations

import argparse
import heapq
import json
import resource
import threading
import time
from functools import partial

import numpy as np
from stub_stages import Numbers, ReadingRank, WaitingReward, WaitingSampler, seconds_of

from prdp.cluster import build_workforce, start_ranks
from prdp.cluster.remote_ranks import RemoteRanks
from prdp.cluster.rollout_queue import RolloutQueue
from prdp.config import ClusterConfig
from prdp.learners.rank import part_of
from prdp.prompts.stream import PromptStream
from prdp.types import Rollout, Weights

IMAGES = 8
STEPS = 50
MICROBATCH = 64
LORA = {"lora": (3_188_736 // 4, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samplers", type=int, nargs="*", default=[1, 8, 64])
    parser.add_argument("--chunk-seconds", type=float, default=16.0, help="8 images of 50 guided steps (%(default)g)")
    parser.add_argument("--jitter", type=float, default=0.2, help="share, either way (%(default)g)")
    parser.add_argument("--small", action="store_true", help="trajectories of a hundredth of the size")
    parser.add_argument("--chunks-each", type=int, default=2, help="an epoch (%(default)s)")
    parser.add_argument("--epochs", type=int, default=3, help="at least 2 (%(default)s)")
    parser.add_argument("--ranks", type=int, default=0, help="that read what was sampled (%(default)s)")
    parser.add_argument("--store-gib", type=float, help="memory of the object store")
    options = parser.parse_args()
    for samplers in options.samplers:
        print(json.dumps(measured(samplers, options)), flush=True)


def measured(samplers: int, options: argparse.Namespace) -> dict[str, float]:
    """Seconds and bytes of an epoch with so many samplers."""
    side = 6 if options.small else 64
    begun = time.perf_counter()
    cluster = ClusterConfig(
        kind="ray",
        samplers=samplers,
        reward_actors=max(1, samplers // 16),
        learners=options.ranks + 1,
        object_store_gib=options.store_gib,
    )
    ranks = start_ranks(cluster, [ReadingRank] * options.ranks, "gloo")
    workforce = build_workforce(
        cluster,
        partial(WaitingSampler, options.chunk_seconds, options.jitter, steps=STEPS, side=side, pixels=8 * side),
        partial(WaitingReward, 0.05),
        1,
    )
    started = time.perf_counter() - begun
    chunks = samplers * options.chunks_each
    rollouts = RolloutQueue(
        workforce,
        PromptStream(Numbers(10**6), seed=0),
        prompts_per_epoch=chunks,
        images_per_prompt=IMAGES,
        seed=0,
        epochs=options.epochs,
        max_staleness=0,
    )
    ideal = [greedy(samplers, chunks, epoch, options) for epoch in range(options.epochs)]
    with StoreWatch() as store:
        seconds, working, reading, read = [], [], [], 0
        for epoch in range(options.epochs):
            weights = Weights.of(epoch, {name: np.zeros(shape, np.float32) for name, shape in LORA.items()})
            start, cpu = time.perf_counter(), time.process_time()
            rollouts.fill(epoch, weights)
            rollout = rollouts.next()
            seconds.append(time.perf_counter() - start)
            if ranks is not None:
                begun = time.perf_counter()
                read = read_by(ranks, rollout)
                reading.append(time.perf_counter() - begun)
            working.append(time.process_time() - cpu)
            workforce.storage()
            size, held = rollout_bytes(rollout), held_bytes(rollout)
            workforce.release(rollout)  # as the loop does: two at once would be twice the memory
            del rollout
    later = float(np.mean(seconds[1:]))
    result = {
        "samplers": samplers,
        "start_seconds": round(started, 1),
        "epoch_seconds": round(later, 2),
        "greedy_seconds": round(float(np.mean(ideal[1:])), 2),
        "overhead_percent": round(100 * (later / float(np.mean(ideal[1:])) - 1), 2),
        "first_overhead_percent": round(100 * (seconds[0] / ideal[0] - 1), 2),
        "driver_cpu_percent": round(100 * float(np.sum(working)) / float(np.sum(seconds + reading)), 1),
        "rollout_gib": round(size / 2**30, 2),
        "driver_holds_mib": round(held / 2**20, 2),
        "driver_peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "store_peak_gib": round(store.peak / 2**30, 2),
        "store_gib": round(store.size / 2**30, 2),
        "spilled_bytes": store.spilled,
    }
    if ranks is not None:
        result |= {
            "ranks": options.ranks,
            "ranks_read_gib": round(read / 2**30, 2),
            "read_seconds": round(float(np.mean(reading[1:])), 2),
        }
    workforce.close()
    if ranks is not None:
        ranks.close()
    return result


def read_by(ranks: RemoteRanks, rollout: Rollout) -> int:
    """Have the ranks read their parts of a rollout, side by side; bytes."""
    numbers, prompts = range(1, ranks.count), len(rollout.prompts)
    bounds = [prompts * rank // len(numbers) for rank in range(ranks.count)]
    parts = {number: part_of(rollout, bounds[number - 1], bounds[number]) for number in numbers}
    for answer in [ranks.ask(number, "take", part) for number, part in parts.items()]:
        answer.result()
    answers = [ranks.ask(number, "read", MICROBATCH) for number in numbers]
    total = sum(answer.result() for answer in answers)
    for answer in [ranks.ask(number, "let_go") for number in numbers]:
        answer.result()
    return total


def rollout_bytes(rollout: Rollout) -> int:
    """Of images and trajectories, wherever they are."""
    return rollout.images.nbytes + sum(array.nbytes for array in rollout.stored.values())


def held_bytes(rollout: Rollout) -> int:
    """Of arrays that are in this process."""
    arrays = (rollout.images, *rollout.stored.values(), *rollout.conditions.values())
    return sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))


def greedy(samplers: int, chunks: int, epoch: int, options: argparse.Namespace) -> float:
    """Seconds until all chunks are done when whoever is free takes the next one at once."""
    free_at = [0.0] * samplers
    for offset in range(chunks):
        seconds = seconds_of(options.chunk_seconds, options.jitter, epoch, offset)
        heapq.heapreplace(free_at, free_at[0] + seconds)
    return max(free_at)


class StoreWatch:
    """Asks the node, twice a second, how full its object store is: bytes at the peak, of so many, and bytes spilled."""

    def __init__(self) -> None:
        self.peak = self.size = self.spilled = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> StoreWatch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        import ray
        from ray._private.internal_api import node_stats

        (node,) = ray.nodes()
        while not self._stop.wait(0.5):
            told = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False)
            stats = told.store_stats
            self.peak = max(self.peak, stats.object_store_bytes_used)
            self.size, self.spilled = stats.object_store_bytes_avail, stats.spilled_bytes_total


if __name__ == "__main__":
    main()
