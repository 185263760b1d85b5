"""What an optimizer, a learning rate's schedule, and a change of a run that resumes, ask of other keys."""

from __future__ import annotations

from prdp.checkpoints.compatible import CHANGEABLE, is_free, may_change
from prdp.config import CheckpointConfig, LearnerConfig, ModelConfig, TrainConfig
from prdp.support.suggest import did_you_mean

_BY_ENTRY = ("adamw", "adamw_fused")
"""Optimizers whose step of an entry takes that entry alone."""
_PRODIGY_LEAST = 0.01
"""Rates below are meant for optimizers whose step size they are."""


def optimizer_problems(learner: LearnerConfig) -> list[str]:
    """Keys that the optimizer would not read, or would read otherwise than they are meant."""
    chosen = f"learner.optimizer={learner.optimizer}"
    if learner.optimizer != "adamw" and learner.framework == "jax":
        return [f"{chosen}: must be adamw for learner.framework=jax"]
    found = []
    if learner.optimizer == "prodigy" and learner.learning_rate < _PRODIGY_LEAST:
        found.append(
            f"learner.learning_rate={learner.learning_rate:g}: must be at least {_PRODIGY_LEAST:g} for {chosen}: it is "
            "a factor of the step size that is found; set 1"
        )
    if learner.optimizer == "muon":
        if learner.mode == "full":
            found.append(f"{chosen}: needs learner.mode=lora: it steps matrices alone")
        plain = LearnerConfig()
        for name in ("adam_beta2", "adam_epsilon"):
            value, unset = getattr(learner, name), getattr(plain, name)
            if value != unset:
                found.append(f"learner.{name}={value:g}: has no effect with {chosen}; leave it at {unset:g}")
    return found


def colocation_problems(config: TrainConfig) -> list[str]:
    """Samplers and learners that cannot share devices by turns."""
    cluster, chosen = config.cluster, "cluster.colocate=true"
    if not cluster.colocate:
        return []
    found = []
    if cluster.max_staleness:
        found.append(
            f"{chosen}: takes turns, and cluster.max_staleness={cluster.max_staleness} has them work at the same time; "
            "set it to 0"
        )
    if config.learner.framework != "torch":
        found.append(f"{chosen}: needs learner.framework=torch, not {config.learner.framework}")
    if config.rollouts.source == "stored":
        found.append(f"{chosen}: has no effect with rollouts.source=stored, whose images are there already")
    if cluster.kind == "inline":
        return found
    if cluster.weight_transport == "nccl":
        found.append(f"{chosen}: needs another cluster.weight_transport than nccl, which takes a GPU for each process")
    gpus = cluster.learner_gpus
    if gpus != cluster.sampler_gpus or (gpus and not 0.5 < gpus <= 1):
        found.append(
            f"{chosen}: cluster.learner_gpus={gpus:g} and sampler_gpus={cluster.sampler_gpus:g} must be the same, "
            "what a pair of both claims of its GPU: above 0.5 and at most 1, or 0 for none"
        )
    if gpus and cluster.samplers != cluster.learners:
        found.append(
            f"{chosen}: cluster.samplers={cluster.samplers} must be cluster.learners={cluster.learners}: each GPU has "
            "one of both"
        )
    return found


def text_problems(config: TrainConfig) -> list[str]:
    """Text encoders that cannot learn with the rest, and keys that nothing reads where they do not."""
    learner = config.learner
    if not learner.text_encoders:
        plain, found = LearnerConfig(), []
        for name in ("text_encoder_targets", "text_encoder_learning_rate"):
            value, unset = getattr(learner, name), getattr(plain, name)
            if value != unset:
                shown = "null" if unset is None else f"[{','.join(unset)}]"
                found.append(f"learner.{name}={value}: needs learner.text_encoders=true; leave it at {shown}")
        return found
    chosen, found = "learner.text_encoders=true", []
    if learner.mode != "lora":
        found.append(f"{chosen}: needs learner.mode=lora, not {learner.mode}: text encoders learn by adapters alone")
    if learner.framework == "jax":
        found.append(f"{chosen}: must be false for learner.framework=jax, which computes the UNet alone")
    if config.cluster.colocate:
        found.append(f"{chosen}: needs cluster.colocate=false: they are held by samplers and learners at once")
    if config.model.offload_encoders:
        found.append(f"{chosen}: needs model.offload_encoders=false: text encoders that learn read in every pass")
    if learner.optimizer == "prodigy" and learner.text_encoder_learning_rate is not None:
        found.append(
            f"learner.text_encoder_learning_rate={learner.text_encoder_learning_rate:g}: must be null for "
            "learner.optimizer=prodigy, which finds one step size for all"
        )
    return found


def sharding_problems(config: TrainConfig) -> list[str]:
    """Processes that cannot hold a network together."""
    cluster, learner = config.cluster, config.learner
    size = cluster.fsdp_size
    if size == 1:
        return []
    chosen = f"cluster.fsdp_size={size}"
    found = []
    if cluster.learners % size:
        found.append(f"{chosen}: must divide cluster.learners={cluster.learners}, the processes that learn")
    if learner.mode != "full":
        found.append(
            f"{chosen}: needs learner.mode=full: of mode={learner.mode} each process has all; set cluster.fsdp_size=1"
        )
    if learner.framework != "torch":
        found.append(f"{chosen}: needs learner.framework=torch, not {learner.framework}")
    elif learner.optimizer not in _BY_ENTRY:
        found.append(
            f"{chosen}: needs learner.optimizer={' or '.join(_BY_ENTRY)}: a step of {learner.optimizer} takes whole "
            "tensors"
        )
    return found


def frozen_problems(model: ModelConfig, learner: LearnerConfig) -> list[str]:
    """Weights of few bits that would have to learn, or that the framework does not compute."""
    if model.quantization is None:
        return []
    chosen = f"model.quantization={model.quantization}"
    if learner.mode == "full":
        return [f"{chosen}: needs learner.mode=lora: weights of few bits do not learn"]
    return [f"{chosen}: must be null for learner.framework=jax"] if learner.framework == "jax" else []


def compile_problems(config: TrainConfig) -> list[str]:
    """What torch.compile makes no programs of here."""
    model, chosen = config.model, f"model.compile={config.model.compile}"
    if model.compile is None:
        return []
    found = []
    if config.learner.framework != "torch":
        found.append(f"{chosen}: must be null for learner.framework={config.learner.framework}")
    if config.cluster.fsdp_size > 1:
        found.append(f"{chosen}: must be null for cluster.fsdp_size={config.cluster.fsdp_size}")
    if model.quantization is not None:
        found.append(f"{chosen}: must be null for model.quantization={model.quantization}")
    return found


def jax_device_problems(config: TrainConfig) -> list[str]:
    """Devices for JAX where JAX does not learn, or learns in several processes."""
    learner, learners = config.learner, config.cluster.learners
    asked = {name: getattr(learner, name) for name in ("jax_data", "jax_fsdp")}
    chosen = [f"learner.{name}={count}" for name, count in asked.items() if count > 1]
    if learner.framework != "jax":
        return [f"{one}: needs learner.framework=jax, not {learner.framework}" for one in chosen]
    if learners > 1:
        return [
            f"{one}: needs cluster.learners=1: the devices are those of one process, and cluster.learners={learners} "
            "are processes of a device each"
            for one in chosen
        ]
    return []


def deterministic_problems(config: TrainConfig) -> list[str]:
    """What torch's switch does not reach."""
    if not config.model.deterministic or config.learner.framework == "torch":
        return []
    return [f"model.deterministic=true: must be false for learner.framework={config.learner.framework}"]


def schedule_problems(learner: LearnerConfig) -> list[str]:
    """A decay that ends before it begins, or that nothing follows."""
    updates = learner.decay_updates
    if updates is None:
        return []
    if learner.schedule == "constant":
        return [f"learner.decay_updates={updates}: has no effect with learner.schedule=constant; leave it at null"]
    if updates <= learner.warmup_updates:
        return [f"learner.decay_updates={updates}: must be above learner.warmup_updates={learner.warmup_updates}"]
    return []


def keep_best_problems(config: TrainConfig) -> list[str]:
    """A metric that no evaluation logs, or evaluations of epochs that have no checkpoint."""
    metric, every, saved = config.checkpoint.keep_best, config.evaluation.every, config.checkpoint.every
    if metric is None:
        return []
    if not metric.startswith("eval/"):
        return [f"checkpoint.keep_best={metric}: must be eval/score, or eval/ with the name of a sub-score"]
    if every == 0 or every % saved:
        return [
            f"checkpoint.keep_best={metric}: needs evaluations of epochs that are saved: evaluation.every={every} must "
            f"be a multiple of checkpoint.every={saved}"
        ]
    return []


def change_problems(checkpoint: CheckpointConfig) -> list[str]:
    """Keys that a resumed run may not have other values of, or a run that does not resume."""
    if checkpoint.change and checkpoint.resume == "never":
        keys = ",".join(checkpoint.change)
        return [f"checkpoint.change=[{keys}]: needs checkpoint.resume=auto, or the path of a checkpoint"]
    refused = [key for key in checkpoint.change if not may_change(key)]
    free = [key for key in refused if is_free(key)]
    found = [f"checkpoint.change: {key}: may differ without being named; leave it out" for key in free]
    others = [key for key in refused if key not in free]
    if others:
        found.append(
            f"checkpoint.change: {', '.join(others)}: a resumed run can change knobs of objective and "
            f"{', '.join(CHANGEABLE)}{''.join(did_you_mean(key, CHANGEABLE) for key in others)}"
        )
    return found
