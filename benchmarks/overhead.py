"""What sampling and learning cost beyond their bare network calls, and beside diffusers' own loop, in one process.

    python benchmarks/overhead.py [--model shapes] [--repeats 7]

Sampling with trajectories is compared with as many policy and reference forwards plus the decoding; a learner update
with as many forward and backward passes of the same batches. Images without trajectories are compared with a call of
diffusers' pipeline, with the same scheduler, steps and prompts. Medians of the ratios over the repeats are printed.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from prdp.config import LearnerConfig, ModelConfig, SamplerConfig
from prdp.diffusion import build_policy
from prdp.diffusion.sampler import Sampler
from prdp.evidence.trajectory import TrajectoryRecorder
from prdp.learners import build_learner
from prdp.types import PromptBatch, Weights

PROMPTS, SIZE, STEPS, BATCH = 4, 8, 8, 32
TEXT = "a large solid red circle on a white background"


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    for guidance_scale in (1.0, 5.0):
        ratio = median(beside_diffusers(options.model, guidance_scale, options.repeats))
        print(f"images, guidance {guidance_scale:g}: {ratio:.3f}x of diffusers' pipeline", flush=True)
    for mode in ("lora", "full"):
        for guidance_scale in (1.0, 5.0):
            sampling, learning = measure(options.model, mode, guidance_scale, options.repeats)
            print(
                f"{mode:4} guidance {guidance_scale:g}: sampling {median(sampling):.3f}x, "
                f"update {median(learning):.3f}x of the bare network passes (medians of {options.repeats})",
                flush=True,
            )


def measure(model: str, mode: str, guidance_scale: float, repeats: int) -> tuple[list[float], list[float]]:
    """Ratios of sampling and of one update to the bare passes."""
    learner_config = LearnerConfig(mode=mode, microbatch=BATCH, ratio_tolerance=1e9)
    policy = build_policy(ModelConfig(path=model), learner_config, seed=0, keep_reference=True)
    settings = SamplerConfig(steps=STEPS, guidance_scale=guidance_scale, microbatch=BATCH)
    table = policy.process.transitions(settings)
    sampler = Sampler(policy, settings, recorder=TrajectoryRecorder())
    # Version 1, so that the reference is really computed.
    sampler.load_weights(Weights.of(1, policy.weights.export(0).tensors))
    texts = tuple(TEXT for _ in range(PROMPTS))
    prompts = PromptBatch(0, 0, texts, tuple({} for _ in texts))
    rollout = sampler.sample(prompts, SIZE, 0)
    rollout = rollout.scored(np.random.default_rng(0).random(len(rollout)), {})
    objective = {"name": "prdp", "beta": 1.0, "clip_range": None}
    learner = build_learner(policy, table, guidance_scale, learner_config, objective)
    learner._updates = 1
    states = policy.encode(rollout.image_prompts)
    latents = torch.randn(BATCH, *policy.latent_shape)

    def bare_sampling() -> None:
        with torch.no_grad():
            policy.encode(texts)
            for step in range(STEPS):
                timesteps = torch.full((BATCH,), float(table.times[step]))
                policy.output(latents, timesteps, states, guidance_scale)
                with policy.reference() as network:
                    policy.output(latents, timesteps, states, guidance_scale, network)
            policy.decode(latents)

    def bare_update() -> None:
        policy.encode(texts)
        for step in range(STEPS):
            timesteps = torch.full((BATCH,), float(table.times[step]))
            policy.output(latents, timesteps, states, guidance_scale).mean().backward()

    def update() -> None:
        learner.update(rollout)
        learner._updates = 1

    for warm_up in (bare_sampling, bare_update, update):
        warm_up()
    sampling, learning = [], []
    for _ in range(repeats):
        sampling.append(seconds(lambda: sampler.sample(prompts, SIZE, 0)) / seconds(bare_sampling))
        learning.append(seconds(update) / seconds(bare_update))
    return sampling, learning


def beside_diffusers(model: str, guidance_scale: float, repeats: int) -> list[float]:
    """Ratios of drawing images, from prompts to pictures, to diffusers' own loop; a LoRA is active in both."""
    policy: Any = build_policy(ModelConfig(path=model), LearnerConfig(), seed=0, keep_reference=False)
    settings = SamplerConfig(steps=STEPS, guidance_scale=guidance_scale, microbatch=BATCH)
    sampler, texts = Sampler(policy, settings), tuple(TEXT for _ in range(PROMPTS))
    prompts = PromptBatch(0, 0, texts, tuple({} for _ in texts))

    def ours() -> None:
        sampler.sample(prompts, SIZE, 0, trajectory=False)

    def theirs() -> None:
        policy.pipeline(
            list(texts), num_images_per_prompt=SIZE, num_inference_steps=STEPS, guidance_scale=guidance_scale, eta=1.0,
            output_type="np",
        )  # fmt: skip

    ours(), theirs()
    return [seconds(ours) / seconds(theirs) for _ in range(repeats)]


if __name__ == "__main__":
    main()
