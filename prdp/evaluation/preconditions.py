"""What an evaluation needs of this machine and of its models' files before it can start."""

from __future__ import annotations

from collections.abc import Sequence

from prdp.config import ClusterConfig, ModelConfig
from prdp.configuration.preconditions import (
    device_problems,
    devices_in,
    gpu_problems,
    model_problems,
    precision_problems,
    refuse,
)
from prdp.evaluation.settings import EvaluateConfig


def check_evaluation_preconditions(config: EvaluateConfig, models: Sequence[ModelConfig]) -> None:
    """Refuse an evaluation that could not start here.

    Args:
        config: of `prdp evaluate`; its device, precision and sampler hold for every model.
        models: the pipelines behind what is evaluated.

    Raises:
        StartError: all that is missing, a line each.
    """
    cluster, inline = config.cluster, config.cluster.kind == "inline"
    problems = gpu_problems(cluster)
    problems += device_problems("model.device", config.model.device, cluster, cluster.sampler_gpus, inline)
    for name in ("rewards", "watch"):
        for key, device in devices_in(name, getattr(config, name)).items():
            problems += device_problems(key, device, cluster, cluster.reward_gpus, inline)
    for key, device in devices_in("features", config.features).items():
        problems += device_problems(key, device, ClusterConfig(kind="inline"), 0.0, True)
    if not problems:
        problems += precision_problems(config.model, config.autocast)
        for model in models:
            problems += model_problems(model, config.sampler, needs_log_probs=config.kl)
    refuse(problems)
