"""The size of a run, derived from its configuration: what is sampled, compared and computed."""

from __future__ import annotations

import math

import numpy as np

from prdp.cluster.process_threads import plan_threads
from prdp.config import TrainConfig
from prdp.diffusion.guidance import guided
from prdp.diffusion.windows import trained_steps
from prdp.learners.precision import spot_check_size
from prdp.objectives import Trajectory, method_of


def geometry(config: TrainConfig) -> dict[str, int]:
    """Derived sizes of a run.

    A network pass is one latent through the denoising network once, forward; guidance above 1 takes two. For
    objectives on trajectories, sampling evaluates the policy and the reference, the latter in a window of noise at the
    stored steps alone; the first update after sampling takes the stored log-probs, and each further one recomputes them
    first, unless the loss is linear in them. Objectives on denoising errors need no reference while sampling, and leave
    images out that they do not use: theirs are the most that may be. In half precision a few cells of trajectories are
    evaluated twice more, to check them and to measure their noise.

    `learning_backwards_per_epoch` counts the passes that are also differentiated.
    """
    method = method_of(config.objective)
    groups, size, updates = config.prompts_per_epoch, config.images_per_prompt, config.updates_per_epoch
    images = groups * size
    branches = 2 if guided(config.sampler.guidance_scale) else 1
    steps = config.sampler.steps
    # The last step of these samplers has no variance.
    ends_quietly = config.sampler.kind in ("ddpm", "cps", "edm_churn")
    noisy = np.arange(steps - max(config.sampler.deterministic_final_steps, int(ends_quietly)))
    half = (config.learner.autocast or config.model.dtype) != "float32"
    evidence = method.evidence
    trajectory = isinstance(evidence, Trajectory)
    blind = set(method.channels) <= set(method.linear) - ({"log_ratio"} if half and trajectory else set())
    if isinstance(evidence, Trajectory):
        columns = trained_steps(config.sampler, noisy)
        reference_steps = steps if columns == len(noisy) else columns
        passes = updates if blind else 2 * updates - 1
    else:
        reference_steps, columns = 0, config.objective.get("draws", evidence.draws)
        passes = updates * (1 + (not blind) + ("denoising_ref" in method.arrays))
    cells = images * columns
    checked = 2 * spot_check_size(cells, config.learner.microbatch) if half and trajectory else 0
    evaluation = config.evaluation
    between = (config.epochs - 1) // evaluation.every if evaluation.every else 0
    ray = config.cluster.kind == "ray"
    return {
        "epochs": config.epochs,
        "images_per_epoch": images,
        "pairs_per_epoch": groups * size * (size - 1) // 2,
        "updates_per_epoch": updates,
        "updates": config.epochs * updates,
        "images": config.epochs * images,
        "chunks_per_epoch": math.ceil(groups / config.sampler.prompts_per_chunk),
        "images_per_chunk": min(groups, config.sampler.prompts_per_chunk) * size,
        "cells_per_update": cells,
        "sampling_passes_per_epoch": images * (steps + reference_steps) * branches,
        "learning_passes_per_epoch": (cells * passes + checked) * branches,
        "learning_backwards_per_epoch": cells * branches * updates,
        "evaluations": 2 + between,
        "evaluation_images": (2 * evaluation.final_prompts + between * evaluation.prompts)
        * evaluation.images_per_prompt,
        "samplers": config.cluster.samplers if ray else 0,
        "reward_actors": config.cluster.reward_actors if ray else 0,
        "threads": plan_threads(config),
    }


def geometry_text(config: TrainConfig) -> str:
    """The geometry for people, an aligned line each."""
    size = geometry(config)
    n, b = config.prompts_per_epoch, config.images_per_prompt
    actors = f"{size['samplers']} samplers, {size['reward_actors']} reward actors, 1 learner"
    rows = (
        ("images per epoch", f"{size['images_per_epoch']:,} = {n:,} prompts x {b:,} images"),
        ("pairs per epoch", f"{size['pairs_per_epoch']:,}"),
        ("work per epoch", f"{size['chunks_per_epoch']:,} chunks of up to {size['images_per_chunk']:,} images"),
        (
            "network passes per epoch",
            f"{size['sampling_passes_per_epoch']:,} to sample, {size['learning_passes_per_epoch']:,} to learn "
            f"({size['learning_backwards_per_epoch']:,} with backward)",
        ),
        ("updates", f"{size['updates']:,} = {size['epochs']:,} epochs x {size['updates_per_epoch']:,}"),
        (
            "images in all",
            f"{size['images']:,}, and {size['evaluation_images']:,} in {size['evaluations']:,} evaluations",
        ),
        ("processes", actors if config.cluster.kind == "ray" else "1: sampling and scoring take turns"),
        ("CPU threads per process", f"{size['threads']:,}"),
    )
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)
