"""What every value of the configuration may be; types are checked before, against the dataclasses."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from prdp.config import ClusterConfig, TrainConfig
from prdp.diffusion import FAMILIES
from prdp.diffusion.precision import precision_problem
from prdp.diffusion.windows import KINDS as WINDOWS
from prdp.learners import FRAMEWORKS
from prdp.objectives import OBJECTIVES, Trajectory, objective_mistakes
from prdp.support.errors import ConfigError
from prdp.support.suggest import did_you_mean


@dataclass(frozen=True)
class Rule:
    """Whether a value is allowed, and in words which values are."""

    allows: Callable[[Any], bool]
    words: str
    choices: tuple[str, ...] = ()


def at_least(bound: int) -> Rule:
    return Rule(lambda value: math.isfinite(value) and value >= bound, f"at least {bound}")


def above(bound: float, finite: bool = True) -> Rule:
    return Rule(
        lambda value: value > bound and (math.isfinite(value) or not finite),
        f"a{' finite' if finite else ''} number above {bound:g}",
    )


def fraction() -> Rule:
    return Rule(lambda value: 0 <= value < 1, "at least 0 and below 1")


def one_of(*choices: str) -> Rule:
    return Rule(lambda value: value in choices, "one of " + ", ".join(choices), choices)


def optional(rule: Rule) -> Rule:
    return Rule(lambda value: value is None or rule.allows(value), f"{rule.words}, or null", (*rule.choices, "null"))


PRECISIONS = ("float32", "bfloat16", "float16")
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
_anything = Rule(lambda value: True, "anything")
_filled = Rule(lambda value: bool(value.strip()), "text, and not empty")
_count = at_least(1)
_amounts = Rule(
    lambda value: all(name.strip() and amount > 0 for name, amount in value.items()), "amounts above 0 by name"
)

RULES: dict[str, Rule] = {
    "seed": at_least(0),
    "epochs": _count,
    "prompts_per_epoch": _count,
    "images_per_prompt": _count,
    "updates_per_epoch": _count,
    "output_dir": _filled,
    "rollout_policy": one_of("current", "reference"),
    "model.family": Rule(
        lambda value: value in FAMILIES or "." in value,
        f"one of {', '.join(FAMILIES)}, or the dotted path of a policy class",
        tuple(FAMILIES),
    ),
    "model.path": Rule(lambda value: bool(value.strip()), "'shapes', a folder in diffusers format, or a hub id"),
    "model.revision": _anything,
    "model.variant": _anything,
    "model.height": optional(_count),
    "model.width": optional(_count),
    "model.max_sequence_length": optional(_count),
    "model.dtype": one_of(*PRECISIONS),
    "model.device": Rule(lambda value: bool(_DEVICE.fullmatch(value)), "auto, cpu, mps, cuda or cuda:<number>"),
    "sampler.kind": one_of("ddim", "ddpm", "flow_sde", "dance_sde", "cps", "edm_churn", "euler"),
    "sampler.steps": _count,
    "sampler.eta": Rule(lambda value: 0 <= value <= 1, "from 0 to 1"),
    "sampler.guidance_scale": at_least(0),
    "sampler.timestep_spacing": optional(one_of("leading", "trailing", "linspace", "scheduler")),
    "sampler.deterministic_final_steps": at_least(0),
    "sampler.shift": optional(above(0)),
    "sampler.window": one_of(*WINDOWS),
    "sampler.window_size": _count,
    "sampler.window_start": at_least(0),
    "sampler.window_end": optional(_count),
    "sampler.window_every": _count,
    "sampler.trained_share": Rule(lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "sampler.shared_start_noise": _anything,
    "sampler.microbatch": _count,
    "sampler.prompts_per_chunk": _count,
    "learner.framework": one_of(*FRAMEWORKS),
    "learner.mode": one_of("lora", "full"),
    "learner.lora_rank": _count,
    "learner.lora_alpha": above(0),
    "learner.lora_targets": Rule(lambda value: bool(value) and all(value), "a list of at least one module name"),
    "learner.learning_rate": above(0),
    "learner.warmup_updates": at_least(0),
    "learner.adam_beta1": fraction(),
    "learner.adam_beta2": fraction(),
    "learner.adam_epsilon": above(0),
    "learner.weight_decay": at_least(0),
    "learner.max_grad_norm": above(0, finite=False),
    "learner.ema_decay": fraction(),
    "learner.autocast": optional(one_of("bfloat16", "float16")),
    "learner.microbatch": _count,
    "learner.gradient_checkpointing": _anything,
    "learner.ratio_tolerance": above(0, finite=False),
    "prompts.heldout_may_overlap": _anything,
    "prompts.shuffle": _anything,
    "evaluation.every": at_least(0),
    "evaluation.prompts": _count,
    "evaluation.images_per_prompt": _count,
    "evaluation.final_prompts": _count,
    "evaluation.grid_prompts": _count,
    "evaluation.seed": at_least(0),
    "cluster.kind": one_of("inline", "ray"),
    "cluster.samplers": _count,
    "cluster.reward_actors": _count,
    "cluster.threads": at_least(0),
    "cluster.address": _filled,
    "cluster.sampler_gpus": at_least(0),
    "cluster.reward_gpus": at_least(0),
    "cluster.host": _filled,
    "cluster.dashboard": _anything,
    "cluster.learner_gpus": at_least(0),
    "cluster.sampler_resources": _amounts,
    "cluster.reward_resources": _amounts,
    "cluster.placement": one_of("pack", "spread"),
    "cluster.autoscaling": _anything,
    "cluster.start_timeout_seconds": above(0),
    "cluster.max_staleness": at_least(0),
    "cluster.retries": at_least(0),
    "cluster.reward_retries": at_least(0),
    "cluster.sample_timeout_seconds": optional(at_least(0)),
    "cluster.reward_timeout_seconds": optional(at_least(0)),
    "cluster.reward_environment": optional(_filled),
    "cluster.weight_transport": one_of("object_store", "gloo", "nccl"),
    "cluster.weight_timeout_seconds": above(0),
    "tracking.console": _anything,
    "tracking.tensorboard": _anything,
    "tracking.wandb": one_of("disabled", "offline", "online", "auto"),
    "tracking.wandb_project": optional(_filled),
    "tracking.wandb_entity": _anything,
    "tracking.wandb_group": _anything,
    "tracking.report": _anything,
    "checkpoint.every": _count,
    "checkpoint.keep": _count,
    "checkpoint.resume": _filled,
    "checkpoint.mirror": optional(_filled),
}
"""Every key that has a type of its own; reward, prompts.train and prompts.heldout are checked against their targets."""


def values(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value, sections unfolded; mappings such as `reward` stay whole."""
    flat: dict[str, Any] = {}
    for entry in dataclasses.fields(config):
        key, value = f"{prefix}{entry.name}", getattr(config, entry.name)
        flat.update(values(value, f"{key}.") if dataclasses.is_dataclass(value) else {key: value})
    return flat


def check_bounds(config: TrainConfig) -> None:
    """Check every value alone and those that must fit together.

    Raises:
        ConfigError: all that is wrong, a line each: the key, its value and what is allowed.
    """
    wrong, problems = broken_rules(config, RULES)
    problems += _misfits(config, wrong)
    if problems:
        raise ConfigError("\n".join(problems))


def check_family(config: TrainConfig) -> None:
    """Check what a model family asks of other sections; at start, as an option of the model alone may not fit yet.

    Raises:
        ConfigError: all that does not fit, a line each.
    """
    if config.model.family != "gaussian_mixtures":
        return
    only = (
        ("model.path", config.model.path, "gaussian_mixtures"),
        ("sampler.guidance_scale", config.sampler.guidance_scale, 1.0),
        ("learner.mode", config.learner.mode, "full"),
        ("learner.framework", config.learner.framework, "torch"),
        ("model.dtype", config.model.dtype, "float32"),
        ("learner.autocast", config.learner.autocast, None),
    )
    problems = [
        f"{key}={_shown(value)}: must be {_shown(expected)} for model.family={config.model.family}"
        for key, value, expected in only
        if value != expected
    ]
    if problems:
        raise ConfigError("\n".join(problems))


def broken_rules(config: Any, rules: Mapping[str, Rule]) -> tuple[dict[str, Rule], list[str]]:
    """The rules that a configuration breaks, by key, and a line about each."""
    flat = values(config)
    wrong = {key: rule for key, rule in rules.items() if not rule.allows(flat[key])}
    return wrong, [
        f"{key}={_shown(flat[key])}: must be {rule.words}{_hint(flat[key], rule)}" for key, rule in wrong.items()
    ]


def _misfits(config: TrainConfig, wrong: dict[str, Rule]) -> list[str]:
    """Values that are fine alone and not together; keys that are wrong already are left out."""
    found = []
    sampler, name = config.sampler, str(config.objective.get("name"))
    found += objective_mistakes(config.objective)
    method = OBJECTIVES.get(name)
    if method is None:
        found[-1] += did_you_mean(name, OBJECTIVES)
    else:
        if method.compares_images and config.images_per_prompt == 1:
            found.append(
                f"images_per_prompt=1: must be at least 2: objective.name={name} compares images of the same prompt, "
                "and fewer make no pair"
            )
        if config.learner.framework == "jax" and not isinstance(method.evidence, Trajectory):
            found.append(
                f"objective.name={name}: learns from denoising errors, which learner.framework=jax does not compute; "
                "use learner.framework=torch"
            )
    if sampler.kind == "ddim" and sampler.eta == 0:
        found.append(
            "sampler.eta=0: must be above 0 for sampler.kind=ddim: without noise a step has no log-prob to learn from"
        )
    if sampler.kind == "ddpm" and sampler.eta != 1 and "sampler.eta" not in wrong:
        found.append(f"sampler.eta={sampler.eta:g}: must be 1 for sampler.kind=ddpm, whose noise is fixed")
    if sampler.kind == "ddpm" and sampler.deterministic_final_steps > 1:
        found.append(
            f"sampler.deterministic_final_steps={sampler.deterministic_final_steps}: must be 0 or 1 for "
            "sampler.kind=ddpm, whose last step alone draws no noise"
        )
    if not wrong.keys() & {"model.dtype", "learner.autocast"}:
        problem = precision_problem("model.dtype", config.model.dtype, "learner.autocast", config.learner.autocast)
        found += [] if problem is None else [problem]
    steps_known = not wrong.keys() & {"sampler.steps", "sampler.deterministic_final_steps"}
    if steps_known and sampler.deterministic_final_steps >= sampler.steps:
        found.append(
            f"sampler.deterministic_final_steps={sampler.deterministic_final_steps}: must be below "
            f"sampler.steps={sampler.steps}: no step with a log-prob would be left"
        )
    if config.checkpoint.mirror is not None and "checkpoint.mirror" not in wrong:
        from prdp.checkpoints.mirror_url import url_problem

        problem = url_problem(config.checkpoint.mirror)
        found += [] if problem is None else [problem]
    for key in ("sample_timeout_seconds", "reward_timeout_seconds", "reward_environment"):
        value = getattr(config.cluster, key)
        if config.cluster.kind == "inline" and value is not None and f"cluster.{key}" not in wrong:
            found.append(
                f"cluster.{key}={_shown(value)}: needs cluster=ray: with cluster=inline sampling and scoring happen in "
                "the process of the trainer, in its environment, and cannot be ended alone"
            )
    if not any(key.startswith("cluster.") for key in wrong):
        found += _transport_misfits(config.cluster)
    return found


def _transport_misfits(cluster: ClusterConfig) -> list[str]:
    chosen = f"cluster.weight_transport={cluster.weight_transport}"
    if cluster.weight_transport != "object_store" and cluster.kind == "inline":
        return [f"{chosen}: needs cluster=ray: with cluster=inline weights stay in the process"]
    if cluster.weight_transport != "nccl":
        return []
    return [
        f"{key}={amount:g}: must be a whole number of at least 1 for {chosen}: the learner and every sampler need a "
        "GPU to themselves"
        for key, amount in (
            ("cluster.learner_gpus", cluster.learner_gpus),
            ("cluster.sampler_gpus", cluster.sampler_gpus),
        )
        if amount < 1 or amount != int(amount)
    ]


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value)
    return "null" if value is None else text if text.strip() else repr(text)


def _hint(value: Any, rule: Rule) -> str:
    return did_you_mean(value, rule.choices) if isinstance(value, str) and rule.choices else ""
