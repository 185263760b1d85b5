"""An update by 1, 2 and 4 processes that learn together: seconds, CPU-seconds, memory, and whether it is the same.

    python benchmarks/learners.py                      # LoRA and full weights of the embedded model, some minutes
    python benchmarks/learners.py --learners 1 8 --mode full --microbatch 4

Each count is a program of its own, with one CPU thread a process. `cpu` is the sum over all processes of an update:
what it has more than with one process is what dealing out, summing and comparing cost. `wall` shrinks only where every
process has a core, or a GPU, to itself: on a machine with fewer cores than processes, or with other work, it tells
nothing. `driver` is the peak of the driver's memory; a rank has the like but for the rollout. `same` compares
the weights after the last update with those of the first count, byte for byte.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

STEPS, GROUP = 10, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learners", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--mode", nargs="*", default=["lora", "full"])
    parser.add_argument("--prompts", type=int, default=4, help=f"of {GROUP} images of {STEPS} steps (%(default)s)")
    parser.add_argument("--microbatch", type=int, default=16, help="cells (%(default)s)")
    parser.add_argument("--updates", type=int, default=3, help="after the first (%(default)s)")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(options.mode[0], int(options.one), options)))
        return
    print("mode  processes  wall s  cpu s  cpu ratio  driver MiB  same")
    for mode in options.mode:
        first: dict[str, Any] = {}
        for count in options.learners:
            sizes = [f"--{key}={getattr(options, key)}" for key in ("prompts", "microbatch", "updates")]
            command = [sys.executable, __file__, "--one", str(count), "--mode", mode, *sizes]
            found = json.loads(subprocess.check_output(command).splitlines()[-1])
            first = first or found
            same = "yes" if found["checksum"] == first["checksum"] else "NO"
            print(
                f"{mode:4}  {count:9}  {found['wall']:6.2f}  {found['cpu']:5.2f}  {found['cpu'] / first['cpu']:9.2f}"
                f"  {found['driver']:10.0f}  {same}",
                flush=True,
            )


def measured(mode: str, count: int, options: argparse.Namespace) -> dict[str, Any]:
    """Medians over the updates after the first."""
    import numpy as np

    from prdp.cluster import start_ranks
    from prdp.cluster.rank_processes import RankProcesses
    from prdp.config import ClusterConfig, LearnerConfig, ModelConfig, SamplerConfig
    from prdp.diffusion import build_policy
    from prdp.learners import RankSettings, build_learner, build_rank
    from prdp.types import PromptBatch, Rollout

    config = LearnerConfig(mode=mode, microbatch=options.microbatch, ratio_tolerance=1e9)
    settings = RankSettings(ModelConfig(), config, SamplerConfig(steps=STEPS), {"name": "prdp", "beta": 1.0}, 0)
    ranks = start_ranks(ClusterConfig(learners=count), [partial(build_rank, settings)] * (count - 1), "gloo")
    policy = build_policy(settings.model, config, seed=0, keep_reference=False)
    table = policy.process.transitions(settings.sampler)
    texts = tuple("a large solid red circle on a white background" for _ in range(options.prompts))
    images, shape, rng = len(texts) * GROUP, policy.latent_shape, np.random.default_rng(0)
    columns = len(table.noisy)
    conditions, empty = policy.encode(texts).to_arrays()
    rollout = Rollout(
        prompts=PromptBatch(0, 0, texts, ({},) * len(texts)),
        images_per_prompt=GROUP,
        stored={
            "latents": rng.normal(size=(images, columns + 1, *shape)).astype(np.float32),
            "base_output": rng.normal(size=(images, columns, *shape)).astype(np.float32),
            "log_ratio": np.zeros((images, columns), np.float32),
            "steps": np.tile(np.arange(columns), (images, 1)),
        },
        conditions=conditions,
        empty_conditions=empty,
        images=np.zeros((images, 1, 1, 3), np.uint8),
        weights_version=0,
        weights_checksum="",
        rewards=rng.random(images),
    )
    learner = build_learner(
        policy, table, settings.sampler.guidance_scale, config, settings.objective, ranks=ranks,
        configuration=settings.digest,
    )  # fmt: skip
    pids = [os.getpid(), *(ranks.process_ids.values() if isinstance(ranks, RankProcesses) else ())]
    wall, cpu = [], []
    for _ in range(options.updates + 1):
        before, begun = sum(map(cpu_seconds, pids)), time.perf_counter()
        learner.update(rollout)
        wall.append(time.perf_counter() - begun)
        cpu.append(sum(map(cpu_seconds, pids)) - before)
    checksum = learner.weights().checksum
    if ranks is not None:
        ranks.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"wall": median(wall[1:]), "cpu": median(cpu[1:]), "driver": peak, "checksum": checksum}


def cpu_seconds(pid: int) -> float:
    """Of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
