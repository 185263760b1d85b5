"""Peak memory of a learner update against the number of steps T and of images: it must not grow with either.

    python benchmarks/memory.py

Each point is a process of its own; the figure is the growth of its resident memory during the update, without the
stored trajectories, against an update that keeps the whole graph (microbatch = all cells).
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")


def growth(steps: int, images: int, microbatch: int) -> float:
    """MiB of resident memory that one update adds at its peak."""
    import numpy as np

    from prdp.config import LearnerConfig, ModelConfig, SamplerConfig
    from prdp.diffusion import build_policy
    from prdp.learners import build_learner
    from prdp.types import PromptBatch, Rollout

    config = LearnerConfig(mode="full", microbatch=microbatch, ratio_tolerance=1e9)
    policy = build_policy(ModelConfig(), config, seed=0, keep_reference=False)
    table = policy.process.transitions(SamplerConfig(steps=steps))
    texts = tuple("a large solid red circle on a white background" for _ in range(images // 4))
    rng = np.random.default_rng(0)
    shape = policy.latent_shape
    rollout = Rollout(
        prompts=PromptBatch(0, 0, texts, tuple({} for _ in texts)),
        images_per_prompt=4,
        stored={
            "latents": rng.normal(size=(images, steps + 1, *shape)).astype(np.float32),
            "base_output": rng.normal(size=(images, steps, *shape)).astype(np.float32),
            "log_ratio": np.zeros((images, steps), np.float32),
            "steps": np.tile(np.arange(steps), (images, 1)),
        },
        conditions=policy.encode(texts).to_arrays()[0],
        empty_conditions=policy.encode(texts).to_arrays()[1],
        images=np.zeros((images, 1, 1, 3), np.uint8),
        weights_version=0,
        weights_checksum="",
        rewards=rng.random(images),
    )
    learner = build_learner(policy, table, 1.0, config, {"name": "prdp", "beta": 1.0})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    learner.update(rollout)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main() -> None:
    if len(sys.argv) == 4:
        print(growth(*map(int, sys.argv[1:])))
        return
    print("steps images microbatch  MiB added by one update")
    for steps, images, microbatch in [(5, 8, 16), (20, 8, 16), (50, 8, 16), (50, 32, 16), (5, 8, 40), (20, 8, 160)]:
        command = [sys.executable, __file__, str(steps), str(images), str(microbatch)]
        print(f"{steps:5} {images:6} {microbatch:10}  {float(subprocess.check_output(command)):.0f}", flush=True)


if __name__ == "__main__":
    main()
