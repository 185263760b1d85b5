"""What several processes that learn together need: work for each, and a device for each."""

from __future__ import annotations

import numpy as np

from prdp.config import TrainConfig
from prdp.configuration.geometry import geometry
from prdp.configuration.network_passes import precisions
from prdp.objectives import build_objective


def idle_rank_problems(config: TrainConfig) -> list[str]:
    """More processes than an update has microbatches, or cells; all else has passed its checks."""
    count, size = config.cluster.learners, config.learner.microbatch
    if count == 1:
        return []
    from prdp.learners.engine import microbatches

    cells, images = geometry(config)["cells_per_update"], config.prompts_per_epoch * config.images_per_prompt
    group = cells // images * config.images_per_prompt
    at_once = build_objective(config.objective).found_with_gradient(group, size, precisions(config).tell)
    parts = len(microbatches(np.arange(cells), size, group if at_once else None))
    if count <= parts:
        return []
    advice = f", or learner.microbatch to at most {cells // count}" if cells >= count else ""
    return [
        f"cluster.learners={count}: an update has {cells:,} cells, which learner.microbatch={size} cuts into {parts}, "
        f"so that {count - parts} of the processes would have nothing to do. Set cluster.learners to at most {parts}"
        f"{advice}"
    ]


def rank_device_problems(config: TrainConfig) -> list[str]:
    """A device for each of the processes that is not there."""
    cluster, model = config.cluster, config.model
    if cluster.learners == 1 or model.device == "cpu":
        return []
    import torch

    asked, there = f"cluster.learners={cluster.learners}", torch.cuda.device_count()
    if model.device == "mps":
        return [f"model.device=mps: {asked} processes would share one GPU; use cpu, or cluster.learners=1"]
    if not there or not torch.cuda.is_available():
        return []
    if cluster.kind == "ray":
        if cluster.learner_gpus:
            return []
        return [
            f"{asked}: model.device={model.device} puts this process on a GPU, and the others get none; set "
            "cluster.learner_gpus=1"
        ]
    if config.learner.framework == "jax":
        return [
            f"{asked}: learner.framework=jax takes the first GPU in each process; set cluster=ray and "
            "cluster.learner_gpus=1, which shows each its own"
        ]
    first = int(model.device.partition(":")[2] or 0)
    if first + cluster.learners > there:
        return [
            f"{asked}: needs cuda:{first} to cuda:{first + cluster.learners - 1}, a GPU for each process, and this "
            f"machine has {there}; set cluster.learners to at most {max(there - first, 1)}, or model.device=cpu"
        ]
    return []
