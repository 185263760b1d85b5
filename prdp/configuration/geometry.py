"""The size of a run, derived from its configuration: what is sampled, compared and computed."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from prdp.cluster.object_store import planned_room
from prdp.cluster.process_threads import plan_threads
from prdp.config import TrainConfig
from prdp.configuration.memory_plan import device_plans, gib
from prdp.configuration.network_passes import checked_passes, image_passes, kept_outputs, noisy_steps, precisions
from prdp.diffusion import family_of
from prdp.diffusion.model_folder import EMBEDDED_FOLDERS
from prdp.objectives import build_objective, evidence_of, objectives_without_noise
from prdp.support.memory import available_memory

_GIB = 2**30


def geometry(config: TrainConfig) -> dict[str, int]:
    """Derived sizes of a run.

    What a network pass is, and which an image takes, says `ImagePasses`. Images that are left out are counted all the
    same, and so are the few cells by which the error of evidence is measured.

    `learning_backwards_per_epoch` counts the passes that are also differentiated.
    """
    objective = build_objective(config.objective)
    groups, size, updates = config.prompts_per_epoch, config.images_per_prompt, config.updates_per_epoch
    images = groups * size
    passes = image_passes(config)
    cells = images * objective.evidence.columns(config.sampler, noisy_steps(config.sampler))
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
        "sampling_passes_per_epoch": images * (passes.policy + passes.reference),
        "learning_passes_per_epoch": images * (passes.evidence + passes.gradient) + checked_passes(config),
        "learning_backwards_per_epoch": images * passes.gradient,
        "evaluations": 2 + between,
        "evaluation_images": (2 * evaluation.final_prompts + between * evaluation.prompts)
        * evaluation.images_per_prompt,
        "samplers": config.cluster.samplers if ray else 0,
        "reward_actors": config.cluster.reward_actors if ray else 0,
        "learners": config.cluster.learners,
        "threads": plan_threads(config),
    }


def rollout_bytes(config: TrainConfig, latent_shape: tuple[int, ...], picture_size: tuple[int, int]) -> dict[str, int]:
    """Bytes of one epoch's rollout, by what it consists of; `prdp.types.Rollout` says what each is.

    Args:
        latent_shape: (C, h, w) of one image.
        picture_size: (H, W) in pixels.
    """
    images = config.prompts_per_epoch * config.images_per_prompt
    latent = images * math.prod(latent_shape) * np.dtype(np.float32).itemsize
    pictures = images * math.prod(picture_size) * 3
    objective, sampler = build_objective(config.objective), config.sampler
    kept = objective.evidence.stored_latents(sampler, noisy_steps(sampler), objective.arrays)
    return {name: round(latent * count) for name, count in kept.items()} | {"pictures": pictures}


def rollouts_at_once(config: TrainConfig) -> int:
    """Rollouts that there are at a time: actors work on those that are asked for ahead."""
    return 1 + (min(config.cluster.max_staleness, config.epochs - 1) if config.cluster.kind == "ray" else 0)


def memory_warning(config: TrainConfig, available: int | None = None) -> str:
    """What to change where the rollouts take more memory than there is; empty where they do not.

    Among actors they lie in the object store of a private Ray, which takes to disk what is too much; what the nodes of
    a Ray that is joined can hold is seen when it is.

    Args:
        available: bytes; None asks the machine.
    """
    cluster = config.cluster
    if cluster.kind == "ray" and cluster.address != "local":
        return ""
    if available is None:
        available = available_memory() if cluster.kind == "inline" else planned_room(cluster.object_store_gib)
    size, count = sum(_parts(config).values()), rollouts_at_once(config)
    if size * count <= available:
        return ""
    keys = ["prompts_per_epoch", "images_per_prompt"]
    at_once = ""
    if count > 1:
        keys.append("cluster.max_staleness")
        at_once = f", and {count} are held at once (cluster.max_staleness={config.cluster.max_staleness})"
    advice = ""
    if evidence_of(config.objective).keeps_steps:
        keys.append("sampler.trained_share")
        advice = (
            ", set sampler.window, or take an objective that stores no trajectories "
            f"({' or '.join(objectives_without_noise())})"
        )
    there = f"{gib(available)} are available here, and the model needs some too. Lower"
    if cluster.kind == "ray":
        there = f"the object store holds {gib(available)} before it writes to disk. "
        there += "Raise cluster.object_store_gib, or lower"
    return f"warning: memory: a rollout takes {gib(size)}{at_once}; {there} {', '.join(keys)}{advice}"


def geometry_text(config: TrainConfig) -> str:
    """The geometry for people, an aligned line each; looks into the model's folder for the size of its latents."""
    size, parts, at_once = geometry(config), _parts(config), rollouts_at_once(config)
    n, b = config.prompts_per_epoch, config.images_per_prompt
    learners = config.cluster.learners
    actors = f"{size['samplers']} samplers, {size['reward_actors']} reward actors, "
    actors += "1 learner" if learners == 1 else f"{learners} that learn together"
    here = "1: sampling and scoring take turns" if learners == 1 else f"{learners}: all learn, one samples and scores"
    plans = [] if config.model.path in EMBEDDED_FOLDERS else device_plans(config)
    kept = {f"outputs of the {of}": size for of, size in kept_outputs(config).items()}
    rows = (
        ("images per epoch", f"{size['images_per_epoch']:,} = {n:,} prompts x {b:,} images"),
        ("pairs per epoch", f"{size['pairs_per_epoch']:,}"),
        ("work per epoch", f"{size['chunks_per_epoch']:,} chunks of up to {size['images_per_chunk']:,} images"),
        (
            "network passes per epoch",
            f"{size['sampling_passes_per_epoch']:,} to sample, {size['learning_passes_per_epoch']:,} to learn "
            f"({size['learning_backwards_per_epoch']:,} with backward)",
        ),
        ("network passes an image", image_passes(config).text),
        *([("precision", _precision_text(config))] if set(precisions(config)) != {"float32"} else []),
        ("updates", f"{size['updates']:,} = {size['epochs']:,} epochs x {size['updates_per_epoch']:,}"),
        (
            "images in all",
            f"{size['images']:,}, and {size['evaluation_images']:,} in {size['evaluations']:,} evaluations",
        ),
        ("memory of a rollout", _memory_text(parts) + (f"; up to {at_once} at once" if at_once > 1 else "")),
        *([("outputs kept to learn", f"{_memory_text(kept)}, on the host of each process")] if kept else []),
        *(row for plan in plans for row in plan.rows),
        ("processes", actors if config.cluster.kind == "ray" else here),
        ("CPU threads per process", f"{size['threads']:,}"),
    )
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)


def _precision_text(config: TrainConfig) -> str:
    gradient, evidence = precisions(config)
    objective = build_objective(config.objective)
    could = "float32" != gradient != evidence and objective.evidence.guard(objective.channels) is None
    # A clip, which acts from the second update on, would act on rounding.
    could &= image_passes(config).evidence > 0
    could &= objective.knobs.get("clip_range") is None or config.updates_per_epoch == 1
    advice = "; learner.evidence_precision=half saves most of the latter's time on a GPU" if could else ""
    return f"{gradient} with gradient, evidence in {evidence}{advice}"


def _parts(config: TrainConfig) -> dict[str, int]:
    family = family_of(config.model)
    return rollout_bytes(config, family.latent_shape_of(config.model), family.picture_size_of(config.model))


def _memory_text(parts: Mapping[str, int]) -> str:
    total = sum(parts.values())
    if total < 0.01 * _GIB:
        return f"below 0.01 GiB of {', '.join(parts)}"
    return f"{gib(total)} = {' + '.join(f'{gib(size)} {name}' for name, size in parts.items())}"
