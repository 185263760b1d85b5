"""What drawing and scoring images needs of this machine and of the models' files before it can start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prdp.cluster.environment import find_environment
from prdp.config import ClusterConfig
from prdp.configuration.preconditions import (
    device_problems,
    devices_in,
    gpu_problems,
    model_problems,
    precision_problems,
    refuse,
    size_problems,
)
from prdp.diffusion import family_of
from prdp.evaluation.lora_checks import lora_problems
from prdp.evaluation.models import EvaluatedModel
from prdp.evaluation.samplers import sampler_of, sampler_problems
from prdp.evaluation.settings import Drawing
from prdp.rewards import check_reward, prompt_checks
from prdp.support.errors import UserError, start_up_checks
from prdp.types import PromptBatch

Sections = Mapping[str, Mapping[str, Any]]
"""Key of the configuration -> name -> section with a `_target_`."""


def check_drawing(
    config: Drawing,
    models: Sequence[EvaluatedModel],
    scored: Sections,
    here: Mapping[str, Any] | None = None,
    sampled: bool = True,
) -> None:
    """Refuse what could not start here: models, devices, precisions, rewards.

    Args:
        config: its device, precision and sampler hold for every model.
        models: what draws.
        scored: sections of rewards.
        here: key -> section of what is built in this process.
        sampled: whether the models are sampled from.

    Raises:
        ConfigError, StartError: all that is missing, a line each.
    """
    here = here or {}
    refuse(_problems(config, models if sampled else (), scored, here))
    for model in models if not sampled else ():
        family_of(model.model).check(model.model)
    for model in models if sampled else ():
        if model.kind == "cascade":
            _check_cascade(model)
    environment = config.cluster.reward_environment
    if environment is not None:
        find_environment(environment)
    missing: list[UserError] = []
    for key, sections in scored.items():
        for name, section in sections.items():
            try:
                check_reward(f"{key}.{name}", section, elsewhere=environment is not None)
            except UserError as error:
                missing.append(error)
                continue
            if environment is None:
                for model in models:
                    refuse(size_problems(f"{key}.{name}", section, model.model, f", as {model.name} draws"))
    if missing:
        # All of them at once: who has to find weights wants to know of all.
        raise type(missing[0])("\n".join(map(str, missing)))
    for key, section in here.items():
        check_reward(key, section)


def check_prompts(scored: Sections, prompts: Mapping[str, PromptBatch]) -> None:
    """Refuse prompts that a reward cannot score, before images of them are drawn.

    Args:
        scored: sections of rewards, which have passed `check_drawing` and are built in the driver's environment.
        prompts: by name of the set.

    Raises:
        StartError: naming the reward's key, the set and the prompt.
    """
    for key, sections in scored.items():
        for name, section in sections.items():
            for place, check in prompt_checks(f"{key}.{name}", section).items():
                for called, batch in prompts.items():
                    with start_up_checks(f"{place} on prompts.{called}"):
                        for prompt, metadata in zip(batch.texts, batch.metadata, strict=True):
                            check(prompt, metadata)


def _check_cascade(model: EvaluatedModel) -> None:
    """Refuse one whose student, teacher or threshold is missing or another than it was calibrated with."""
    from prdp.collaboration.cascade_files import read_cascade
    from prdp.evaluation.cascades import parts_of, threshold_of

    assert model.path is not None
    with start_up_checks(f"models: {model.name}"):
        cascade = read_cascade(model.path)
        for part in parts_of(cascade):
            family_of(part.model).check(part.model)
        threshold_of(model.path, cascade)


def _problems(
    config: Drawing, models: Sequence[EvaluatedModel], scored: Sections, here: Mapping[str, Any]
) -> list[str]:
    cluster, inline = config.cluster, config.cluster.kind == "inline"
    problems = gpu_problems(cluster)
    problems += device_problems("model.device", config.model.device, cluster, cluster.sampler_gpus, inline)
    for name, sections in scored.items():
        for key, device in devices_in(name, sections).items():
            problems += device_problems(key, device, cluster, cluster.reward_gpus, inline)
    for name, section in here.items():
        for key, device in devices_in(name, section).items():
            problems += device_problems(key, device, ClusterConfig(kind="inline"), 0.0, True)
    problems += sampler_problems(config, models) if models else []
    if not problems:
        problems += precision_problems(config.model, config.autocast)
        for model in models:
            problems += model_problems(model.model, sampler_of(config, model), needs_log_probs=config.kl)
    return problems or lora_problems(models)
