"""Whether the values of a configuration are allowed, alone and together; what a key may be stands in its schema.

Types are checked before, against the dataclasses. The sections `reward`, `prompts.train` and `prompts.heldout` are
checked against their targets.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from prdp.config import ClusterConfig, ModelConfig, TrainConfig
from prdp.configuration.learner_bounds import (
    change_problems,
    colocation_problems,
    compile_problems,
    deterministic_problems,
    frozen_problems,
    jax_device_problems,
    keep_best_problems,
    optimizer_problems,
    schedule_problems,
    sharding_problems,
    text_problems,
)
from prdp.configuration.objective_bounds import objective_problems
from prdp.configuration.sampler_bounds import noise_problems, window_problems
from prdp.diffusion.precision import precision_problem
from prdp.support.errors import ConfigError
from prdp.support.rules import Rule, rules_of
from prdp.support.suggest import did_you_mean
from prdp.support.targets import TARGET


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
    wrong, problems = broken_rules(config)
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
    only: tuple[tuple[str, Any, Any], ...] = (
        ("model.path", config.model.path, "gaussian_mixtures"),
        ("model.height", config.model.height, None),
        ("model.width", config.model.width, None),
        ("model.max_sequence_length", config.model.max_sequence_length, None),
        ("model.config", config.model.config, None),
        ("sampler.guidance_scale", config.sampler.guidance_scale, 1.0),
        ("objective.kl_guidance", config.objective.get("kl_guidance"), None),
        ("learner.mode", config.learner.mode, "full"),
        ("learner.framework", config.learner.framework, "torch"),
        ("model.dtype", config.model.dtype, "float32"),
        ("learner.autocast", config.learner.autocast, None),
        ("learner.evidence_precision", config.learner.evidence_precision, "float32"),
        ("model.quantization", config.model.quantization, None),
        ("model.compile", config.model.compile, None),
        ("model.deterministic", config.model.deterministic, False),
        ("model.adapters", config.model.adapters, []),
        ("learner.init_adapter", config.learner.init_adapter, None),
    )
    problems = [
        f"{key}={_shown(value)}: must be {_shown(expected)} for model.family={config.model.family}"
        for key, value, expected in only
        if value != expected
    ]
    if problems:
        raise ConfigError("\n".join(problems))


def adapter_problems(model: ModelConfig) -> list[str]:
    """Weights of adapters that are not one for each."""
    if len(model.adapter_weights) in (0, len(model.adapters)):
        return []
    return [
        f"model.adapter_weights: has {len(model.adapter_weights)} numbers: must be one for each of the "
        f"{len(model.adapters)} model.adapters, or none"
    ]


def broken_rules(config: Any) -> tuple[dict[str, Rule], list[str]]:
    """The rules of its schema that a configuration breaks, by key, and a line about each value that does."""
    schema: type = type(config)
    flat = values(config)
    found = [
        (key, value, rule)
        for key, rule in rules_of(schema).items()
        for value in (flat[key] if rule.each else [flat[key]])
        if not rule.allows(value)
    ]
    lines = [f"{key}={_shown(value)}: must be {rule.words}{_hint(value, rule)}" for key, value, rule in found]
    return {key: rule for key, _, rule in found}, lines


def _rollouts_misfits(config: TrainConfig) -> list[str]:
    """Keys of a source that is not taken."""
    rollouts = config.rollouts
    if rollouts.source == "stored":
        found = [] if rollouts.folders else ["rollouts.path=null: rollouts.source=stored needs the folder of a set"]
        if config.rollout_policy != "current":
            found.append(
                f"rollout_policy={config.rollout_policy}: has no effect with rollouts.source=stored, whose images are "
                "there already; leave it at current"
            )
        return found
    set_ = {"path": rollouts.path, "skill": rollouts.skill, "encode": rollouts.encode or None}
    return [
        f"rollouts.{key}={_shown(value)}: needs rollouts.source=stored"
        for key, value in set_.items()
        if value is not None
    ]


def _misfits(config: TrainConfig, wrong: dict[str, Rule]) -> list[str]:
    """Values that are fine alone and not together; keys that are wrong already are left out."""
    found = []
    sampler = config.sampler
    # A target is imported when a run starts, never by reading a configuration: see `objective_problems`.
    if TARGET not in config.objective:
        found += objective_problems(config)
    if not wrong.keys() & {"sampler.kind", "sampler.eta"}:
        found += noise_problems(sampler, config.images_per_prompt)
    found += window_problems(sampler)
    if sampler.kind == "ddpm" and sampler.deterministic_final_steps > 1:
        found.append(
            f"sampler.deterministic_final_steps={sampler.deterministic_final_steps}: must be 0 or 1 for "
            "sampler.kind=ddpm, whose last step alone draws no noise"
        )
    if not wrong.keys() & {"model.dtype", "learner.autocast"}:
        problem = precision_problem("model.dtype", config.model.dtype, "learner.autocast", config.learner.autocast)
        found += [] if problem is None else [problem]
    found += _rollouts_misfits(config)
    found += adapter_problems(config.model)
    if config.learner.init_adapter is not None and config.learner.mode != "lora":
        found.append(
            f"learner.init_adapter={config.learner.init_adapter}: needs learner.mode=lora; model.adapters adds it to "
            "the weights that learn"
        )
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
    found += schedule_problems(config.learner) + change_problems(config.checkpoint) + keep_best_problems(config)
    if not wrong.keys() & {"learner.optimizer", "learner.learning_rate"}:
        found += optimizer_problems(config.learner)
    found += text_problems(config)
    if "model.quantization" not in wrong:
        found += frozen_problems(config.model, config.learner)
    for key in ("sample_timeout_seconds", "reward_timeout_seconds", "reward_environment"):
        value = getattr(config.cluster, key)
        if config.cluster.kind == "inline" and value is not None and f"cluster.{key}" not in wrong:
            found.append(
                f"cluster.{key}={_shown(value)}: needs cluster=ray: with cluster=inline sampling and scoring happen in "
                "the process of the trainer, in its environment, and cannot be ended alone"
            )
    if not any(key.startswith("cluster.") for key in wrong):
        found += _store_misfits(config.cluster) + _transport_misfits(config.cluster) + _rank_misfits(config.cluster)
        found += sharding_problems(config) + colocation_problems(config) + compile_problems(config)
        found += deterministic_problems(config) + jax_device_problems(config)
    return found


def _store_misfits(cluster: ClusterConfig) -> list[str]:
    if cluster.object_store_gib is None or (cluster.kind == "ray" and cluster.address == "local"):
        return []
    why = "with cluster=inline rollouts stay in the process"
    if cluster.kind == "ray":
        why = f"the nodes of cluster.address={cluster.address} have object stores of their own (ray start)"
    return [f"cluster.object_store_gib={cluster.object_store_gib:g}: needs a private Ray (cluster=ray): {why}"]


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


def _rank_misfits(cluster: ClusterConfig) -> list[str]:
    if cluster.learners == 1:
        seconds = cluster.learner_timeout_seconds
        if seconds is None:
            return []
        return [f"cluster.learner_timeout_seconds={seconds:g}: has no effect with cluster.learners=1; leave it at null"]
    gpus = cluster.learner_gpus
    if cluster.kind == "ray" and gpus != int(gpus) and not cluster.colocate:
        return [
            f"cluster.learner_gpus={gpus:g}: must be a whole number with cluster.learners={cluster.learners}: each of "
            "them needs a GPU to itself"
        ]
    return []


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value)
    return "null" if value is None else text if text.strip() else repr(text)


def _hint(value: Any, rule: Rule) -> str:
    return did_you_mean(value, rule.choices) if isinstance(value, str) and rule.choices else ""
