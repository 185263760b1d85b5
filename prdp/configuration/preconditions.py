"""What a configuration needs of this machine and of its model's files before it can start: one list for all commands.

Each function gives the problems that it finds, a text each: the key, its value and what is expected. Heavy libraries
are imported only by those that look into a model or at a device.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from typing import Any

from prdp.config import ClusterConfig, LearnerConfig, ModelConfig, SamplerConfig, TrainConfig
from prdp.configuration.objective_bounds import evidence_problems, objective_problems
from prdp.configuration.rank_problems import idle_rank_problems, rank_device_problems
from prdp.objectives import evidence_of
from prdp.support.errors import StartError, UserError
from prdp.support.targets import TARGET
from prdp.support.trial import why_not

_OPTIMIZER_PACKAGES = {"adamw_8bit": "bitsandbytes", "prodigy": "prodigyopt"}
_RAY_OWN = ("CPU", "GPU", "memory", "object_store_memory")


def check_preconditions(config: TrainConfig) -> None:
    """Refuse a run of `prdp train` that could not start here.

    Raises:
        StartError: all that is missing, a line each.
    """
    problems = package_problems(config) + gpu_problems(config.cluster)
    if TARGET in config.objective:
        problems += objective_problems(config)
    cluster, inline = config.cluster, config.cluster.kind == "inline"
    learns_here = inline or not cluster.learner_gpus
    problems += device_problems("model.device", config.model.device, cluster, cluster.sampler_gpus, learns_here)
    problems += rank_device_problems(config)
    problems += jax_device_count_problems(config.learner) if not problems else []
    for key, device in devices_in("reward", config.reward).items():
        problems += device_problems(key, device, cluster, cluster.reward_gpus, inline)
    if not problems:
        problems += precision_problems(config.model, config.learner.autocast)
        problems += stepping_problems(config.learner, config.model)
        problems += quantization_here_problems(config.model)
        needs_log_probs = evidence_of(config.objective).needs_noise
        problems += model_problems(
            config.model, config.sampler, config.learner, needs_log_probs=needs_log_probs
        )
    refuse(problems)
    refuse(evidence_problems(config))
    refuse(idle_rank_problems(config))


def refuse(problems: list[str]) -> None:
    """Raise StartError with the problems, a line each, if there are any."""
    if problems:
        raise StartError("\n".join(dict.fromkeys(problems)))


def package_problems(config: TrainConfig) -> list[str]:
    """Packages that are asked for and not installed."""
    wanted: list[tuple[str, tuple[str, ...], str]] = []
    if config.learner.framework == "jax":
        wanted.append(("learner.framework=jax", ("jax", "flax", "optax"), "prdp[jax]"))
    if config.learner.optimizer in _OPTIMIZER_PACKAGES:
        package = _OPTIMIZER_PACKAGES[config.learner.optimizer]
        wanted.append((f"learner.optimizer={config.learner.optimizer}", (package,), f"prdp[{package}]"))
    if config.tracking.tensorboard:
        wanted.append(("tracking.tensorboard=true", ("tensorboard",), "prdp[tensorboard]"))
    if config.tracking.mlflow:
        wanted.append(("tracking.mlflow=true", ("mlflow",), "prdp[mlflow]"))
    if config.tracking.trackio:
        wanted.append(("tracking.trackio=true", ("trackio",), "prdp[trackio]"))
    if config.tracking.wandb != "disabled":
        wanted.append((f"tracking.wandb={config.tracking.wandb}", ("wandb",), "wandb"))
    if config.cluster.kind == "ray":
        wanted.append(("cluster.kind=ray", ("ray",), "ray"))
        if config.cluster.dashboard and config.cluster.address == "local":
            wanted.append(("cluster.dashboard=true", ("aiohttp",), "prdp[dashboard]"))
    problems = []
    for key, names, pip in wanted:
        missing = [name for name in names if importlib.util.find_spec(name) is None]
        if missing:
            problems.append(f"{key}: needs {', '.join(missing)}, which is not installed: pip install '{pip}'")
    return problems


def gpu_problems(cluster: ClusterConfig) -> list[str]:
    """More GPUs, or other resources, than a private Ray has here; of other clusters Ray tells at the start."""
    if cluster.kind != "ray" or cluster.address != "local":
        return []
    problems = [
        f"{key}={dict(resources)}: a private Ray (cluster.address=local) has no '{name}'"
        for key, resources in (
            ("cluster.sampler_resources", cluster.sampler_resources),
            ("cluster.reward_resources", cluster.reward_resources),
        )
        for name in resources
        if name not in _RAY_OWN
    ]
    asked = (
        cluster.learners * cluster.learner_gpus
        + cluster.samplers * cluster.sampler_gpus * (not cluster.colocate)
        + cluster.reward_actors * cluster.reward_gpus
    )
    if asked:
        import torch

        there = torch.cuda.device_count()
        if asked > there:
            problems.append(
                f"cluster: asks for {asked:g} GPUs: learners={cluster.learners} x learner_gpus="
                f"{cluster.learner_gpus:g} + samplers={cluster.samplers} x sampler_gpus={cluster.sampler_gpus:g} + "
                f"reward_actors={cluster.reward_actors} x reward_gpus={cluster.reward_gpus:g}; this machine has "
                f"{there or 'none'}"
            )
    return problems


def jax_device_count_problems(learner: LearnerConfig) -> list[str]:
    """More devices for JAX than this process has; JAX is there, see `package_problems`."""
    if learner.framework != "jax" or learner.jax_data * learner.jax_fsdp == 1:
        return []
    from prdp.learners import share_gpus
    from prdp.learners.jax_mesh import device_count_problems

    share_gpus()
    return device_count_problems(learner.jax_data, learner.jax_fsdp)


def devices_in(key: str, section: Any) -> dict[str, str]:
    """The keys called `device` of a section and of those nested in it."""
    if not isinstance(section, Mapping):
        return {}
    found = {f"{key}.device": section["device"]} if isinstance(section.get("device"), str) else {}
    for name, value in section.items():
        found.update(devices_in(f"{key}.{name}", value))
    return found


def device_problems(key: str, device: str, cluster: ClusterConfig, actor_gpus: float, here: bool) -> list[str]:
    """A device that is not there.

    Args:
        key, device: such as 'model.device' and 'cuda:1'.
        cluster: with Ray, an actor sees only the GPUs that Ray gave to it.
        actor_gpus: those of each actor that uses the device.
        here: whether this process uses it too.
    """
    kind, _, number = device.partition(":")
    if kind not in ("cuda", "mps"):
        return []
    hidden = os.environ.get("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1").lower() not in ("0", "false")
    if cluster.kind == "ray" and kind == "cuda" and (actor_gpus or hidden):
        if not actor_gpus:
            return [f"{key}={device}: actors see no GPU unless cluster.sampler_gpus or reward_gpus gives one; use auto"]
        if int(number or 0) >= max(actor_gpus, 1):
            return [f"{key}={device}: an actor sees the {actor_gpus:g} GPU that Ray gives to it as cuda:0; use auto"]
    if cluster.kind == "ray" and cluster.address != "local" and not here:
        return []
    import torch

    if kind == "mps":
        return [] if torch.backends.mps.is_available() else [f"{key}=mps: this machine has none; use auto or cpu"]
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(number or 0) < there:
        return []
    return [f"{key}={device}: torch {torch.__version__} sees {there or 'no'} CUDA device(s) here; use auto or cpu"]


def precision_problems(model: ModelConfig, autocast: str | None) -> list[str]:
    """A precision that the model's device does not compute in."""
    import torch

    wanted = {"model.dtype": model.dtype, "learner.autocast": autocast}
    device = model.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    problems = []
    for key, name in wanted.items():
        if name is None or name == "float32":
            continue
        value = torch.ones(1, 1, 2, 2)
        try:
            value = value.to(device, getattr(torch, name))
            torch.nn.functional.conv2d(value, value[..., :1, :1]) @ value
        except (RuntimeError, TypeError) as error:
            reason = str(error).splitlines()[0]
            problems.append(f"{key}={name}: the device {device} does not compute in it: {reason}; use float32")
    return problems


def stepping_problems(learner: LearnerConfig, model: ModelConfig) -> list[str]:
    """An optimizer that the model's device does not compute, by a step of a small tensor."""
    if learner.optimizer == "adamw":
        return []
    import torch

    from prdp.diffusion.pipeline_loading import device_of
    from prdp.learners.optimizers import build_optimizer

    device = device_of(model)
    value = torch.nn.Parameter(torch.ones(64, 64, device=device))
    value.grad = torch.ones_like(value)
    if (reason := why_not(lambda: build_optimizer(learner, {"tried": value}).step(1e-3))) is not None:
        return [f"learner.optimizer={learner.optimizer}: the device {device} does not compute it: {reason}; use adamw"]
    return []


def quantization_here_problems(model: ModelConfig) -> list[str]:
    """A quantisation that the model's device does not compute, or whose package is not installed."""
    if model.quantization is None:
        return []
    from prdp.diffusion.pipeline_loading import device_of
    from prdp.diffusion.quantization import quantization_problems

    return quantization_problems(model, device_of(model))


def size_problems(key: str, section: Mapping[str, Any], model: ModelConfig, where: str = "") -> list[str]:
    """Why a reward cannot score pictures of a model's size; both have passed their own checks.

    Args:
        key: where the reward's section stands.
        where: put behind each problem, such as the model's name.
    """
    from prdp.diffusion import family_of
    from prdp.rewards import size_checks

    checks = size_checks(key, section)
    problems = []
    for part, check in checks.items():
        try:
            check(*family_of(model).picture_size_of(model))
        except ValueError as error:
            problems.append(f"{part}: {error}{where}")
    return problems


def model_problems(
    model: ModelConfig,
    sampler: SamplerConfig,
    learner: LearnerConfig | None = None,
    *,
    needs_log_probs: bool = False,
) -> list[str]:
    """Why a model cannot be loaded, sampled from and, where a learner is given, trained; its weights are not read.

    Only the first kind of problem is told: a folder that is not whole has no layers to speak of.
    """
    from prdp.diffusion import family_of

    try:
        family = family_of(model)
        family.check(model)
    except UserError as error:
        return [str(error)]
    problems = transition_problems(model, sampler, needs_log_probs) + negative_prompt_problems(model, sampler)
    if learner is None:
        return problems
    if learner.text_encoders and not getattr(family, "ADAPTED_ENCODERS", ()):
        problems.append(
            f"learner.text_encoders=true: must be false for model.family={model.family}: the CLIP text encoders of "
            "Stable Diffusion 1.x, 2.x, XL and 3 take adapters, and no others"
        )
    return problems + family.learner_problems(model, learner)


def transition_problems(model: ModelConfig, sampler: SamplerConfig, needs_log_probs: bool) -> list[str]:
    """Why a sampler section makes no chain of a model's process, or one without a log-prob where these are needed."""
    from prdp.diffusion import family_of
    from prdp.diffusion.windows import trained_steps

    try:
        stored = trained_steps(sampler, family_of(model).process_of(model).transitions(sampler).noisy)
    except ValueError as error:
        return [str(error)]
    if needs_log_probs and not stored:
        return [f"sampler.steps={sampler.steps}: no step would draw noise, as the last one does not; take more steps"]
    return []


def negative_prompt_problems(model: ModelConfig, sampler: SamplerConfig) -> list[str]:
    """A negative prompt where no branch without prompt would be computed."""
    from prdp.diffusion import family_of
    from prdp.diffusion.guidance import guided

    of, scale = getattr(family_of(model), "branches_of", None), sampler.guidance_scale
    if sampler.negative_prompt is None or (of(model, scale) > 1 if of is not None else guided(scale)):
        return []
    return [
        f"sampler.negative_prompt={sampler.negative_prompt!r}: must be null where there is no branch without prompt "
        f"(given model.path={model.path}, sampler.guidance_scale={sampler.guidance_scale:g})"
    ]
