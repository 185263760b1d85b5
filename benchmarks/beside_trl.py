"""CPU-seconds an image, sampled and trained, and peak memory, beside TRL's DDPO trainer; and how they grow.

    pip install trl==0.23.1      # the last releases that had the trainer end with this one
    python benchmarks/beside_trl.py [--latents 8 16] [--repeats 3] [--systems trl ddpo prdp]
    python benchmarks/beside_trl.py --growth

The embedded UNet, LoRA of rank 4 on attention, 10 steps of DDIM with eta 1 and guidance 5, 32 images an epoch, a reward
that costs nothing, one thread. Each system is a process of its own: an epoch to warm up, then three that count, by the
CPU time of the process, so that other work on the machine is not counted. Systems take turns; each figure is told as it
comes, then medians over the repeats, and those of the ratios to the first system, TRL, of the same turn. Nothing is
written.

`--growth` needs no TRL: it doubles images, steps, images a prompt and pixels, one at a time, under PRDP, and prints
CPU-seconds an epoch beside those of the smallest, where a straight line is 2 and 4.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from prdp import api
from prdp.config import TrainConfig

os.environ.setdefault("OMP_NUM_THREADS", "1")

STEPS, GUIDANCE, IMAGES, EPOCHS, SCALE = 10, 5.0, 32, 3, 4
"""SCALE: pixels of a picture's side for each of a latent's."""
TEXT = "a large solid red circle on a white background"
RATIOS = "learner.ratio_tolerance=inf"
"""Batches of other sizes have other last bits, which the guard of trajectories is told to let be."""
HERE = {
    "ddpo": ("objective=ddpo", RATIOS, "sampler.microbatch=4", "learner.microbatch=4"),
    "ddpo, batches of 16": ("objective=ddpo", RATIOS, "sampler.microbatch=16", "learner.microbatch=16"),
    "ddpo, larger batches": ("objective=ddpo", RATIOS, "sampler.microbatch=16", "learner.microbatch=64"),
    "prdp": ("objective=prdp", RATIOS, "sampler.microbatch=16", "learner.microbatch=64"),
    "prdp_denoising": ("objective=prdp_denoising", "sampler.microbatch=16", "learner.microbatch=64"),
}
TRL = "trl"
"""With batches of 4, its default, in sampling and training."""
GROWTH = {
    "images": [("prompts_per_epoch=2",), ("prompts_per_epoch=4",), ("prompts_per_epoch=8",)],
    "steps": [(f"sampler.steps={steps}",) for steps in (5, 10, 20)],
    "images a prompt": [(f"images_per_prompt={size}",) for size in (4, 8, 16)],
    "pixels": [
        (f"model.height={side}", f"model.width={wide}", "reward=redness")  # the judge's pictures are squares
        for side, wide in ((32, 32), (32, 64), (64, 64))
    ],
}
"""What is doubled: the words of each point."""


def size(latents: int) -> list[str]:
    """Words for square pictures whose latents have this side."""
    return [f"model.height={latents * SCALE}", f"model.width={latents * SCALE}"]


def settings(words: Sequence[str]) -> TrainConfig:
    """Of a system of this package."""
    return api.compose(
        "experiment=shapes_smoke",
        "sampler=few_step",
        f"sampler.steps={STEPS}",
        f"sampler.guidance_scale={GUIDANCE}",
        "sampler.deterministic_final_steps=0",
        f"prompts_per_epoch={IMAGES // 8}",
        "images_per_prompt=8",
        "output_dir=none",
        *words,
    )


def epochs_here(words: Sequence[str]) -> Callable[[int], None]:
    """A loop of `prdp.api` on the parts of a run."""
    config = settings(words)
    parts = api.build(config)

    def epoch(number: int) -> None:
        parts.sampler.load_weights(parts.learner.weights())
        prompts = parts.prompts.next(config.prompts_per_epoch, number)
        rollout = parts.sampler.sample(prompts, config.images_per_prompt, config.seed)
        scores = rollout.images.reshape(len(rollout), -1).mean(1) / 255.0
        parts.learner.update(rollout.scored(scores, {}))

    return epoch


def epochs_of_trl(latents: int) -> Callable[[int], None]:
    """TRL's trainer on the same network."""
    import torch
    from accelerate import PartialState
    from trl import DDPOConfig, DDPOTrainer
    from trl.models.modeling_sd_base import DefaultDDPOStableDiffusionPipeline

    from prdp.diffusion.model_folder import model_location

    PartialState()  # its logger asks for it
    pipeline = DefaultDDPOStableDiffusionPipeline(
        model_location("shapes"), pretrained_model_revision=None, use_lora=True
    )
    pipeline.sd_pipeline.unet.register_to_config(sample_size=latents)
    trainer = DDPOTrainer(
        DDPOConfig(
            num_epochs=1,
            sample_num_steps=STEPS,
            sample_guidance_scale=GUIDANCE,
            sample_batch_size=4,
            sample_num_batches_per_epoch=IMAGES // 4,
            train_batch_size=4,
            train_gradient_accumulation_steps=IMAGES // 4,
            save_freq=10**6,
            mixed_precision="no",
            allow_tf32=False,
        ),
        lambda images, prompts, metadata: (images.float().mean((1, 2, 3)), {}),
        lambda: (TEXT, {}),
        pipeline,
    )
    torch.set_num_threads(1)

    def epoch(number: int) -> None:
        trainer.step(number, number)

    return epoch


def measure(system: str, words: Sequence[str], latents: int) -> dict[str, float]:
    """In a process of its own: CPU-seconds of an epoch, and the peak of its memory in MB."""
    epoch = epochs_of_trl(latents) if system == TRL else epochs_here([*size(latents), *HERE[system], *words])
    epoch(0)
    start = time.process_time()
    for number in range(1, EPOCHS + 1):
        epoch(number)
    seconds = (time.process_time() - start) / EPOCHS
    return {"seconds": seconds, "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000}


def child(system: str, words: Sequence[str], latents: int) -> dict[str, Any]:
    """`measure` by a new process."""
    command = [sys.executable, __file__, "--child", json.dumps([system, list(words), latents])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{system}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{system} {' '.join(words)} {latents}x{latents}: {found}", file=sys.stderr, flush=True)
    return found


def beside(systems: Sequence[str], latents: int, repeats: int) -> None:
    """Print a row for each system."""
    turns = [{system: child(system, (), latents) for system in systems} for _ in range(repeats)]
    for system in systems:
        seconds = median(turn[system]["seconds"] for turn in turns) / IMAGES
        ratio = median(turn[system]["seconds"] / turn[systems[0]]["seconds"] for turn in turns)
        memory = median(turn[system]["rss"] for turn in turns)
        print(f"| {latents}x{latents} | {system} | {seconds:.3f} | {ratio:.2f} | {memory:.0f} MB |", flush=True)


def growth(repeats: int) -> None:
    """Print a row for what is doubled."""
    for name, points in GROWTH.items():
        turns = [[child("prdp_denoising", point, 8)["seconds"] for point in points] for _ in range(repeats)]
        ratios = [median(turn[place] / turn[0] for turn in turns) for place in range(len(points))]
        print(f"| {name} | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} |", flush=True)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--systems", nargs="+", default=[TRL, *HERE], choices=[TRL, *HERE])
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(*options.child)))
    elif options.growth:
        growth(options.repeats)
    else:
        for latents in options.latents:
            beside(options.systems, latents, options.repeats)


if __name__ == "__main__":
    main()
