"""Samplers of finished models: whole pipelines, LoRA files applied to one, checkpoints of training."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

from prdp.checkpoints.checkpoint import load_checkpoint
from prdp.collaboration.cascade import CascadeSampler
from prdp.config import LearnerConfig, SamplerConfig
from prdp.diffusion import build_policy
from prdp.diffusion.adapter_tensors import PEFT_FILE, adapts_text
from prdp.diffusion.adapters import another_adapter, put_adapter
from prdp.diffusion.fused_factors import authors_layout
from prdp.diffusion.policy import Policy
from prdp.diffusion.recording import Recorder
from prdp.diffusion.redrawing import RedrawingSampler
from prdp.evaluation.models import EvaluatedModel
from prdp.evidence.trajectory import TrajectoryRecorder
from prdp.experts.gate_files import read_gated
from prdp.experts.kohya import FOREIGN_PREFIXES, KOHYA_PREFIXES
from prdp.support.errors import StartError, UserError
from prdp.types import Weights

_APPLIED = "applied"
"""Name of the adapter that `apply_lora` loads."""


def build_evaluated_sampler(
    model: EvaluatedModel,
    sampler: SamplerConfig,
    dtype: str,
    device: str,
    autocast: str | None,
    kl: bool,
    recorder: Recorder | None = None,
) -> RedrawingSampler | CascadeSampler:
    """A sampler of a finished model; picklable as a `functools.partial`, so that an actor can call it.

    Args:
        model: which.
        sampler: steps, guidance and so on, the same for every model. No start noise is shared: the images that are
            judged are drawn independently.
        dtype, device: of the network.
        autocast: of its forward; None for none.
        kl: whether trajectories will be asked for, which need the reference.
        recorder: of what else is kept of the chains, without the reference.

    Raises:
        ValueError: weights that do not fit; names them.
    """
    if model.kind == "cascade":
        from prdp.evaluation.cascades import build_cascade_sampler

        assert model.path is not None
        return build_cascade_sampler(model.path, dtype, device, autocast, sampler)
    return build_plain_sampler(model, sampler, dtype, device, autocast, kl, recorder)


def build_plain_sampler(
    model: EvaluatedModel,
    sampler: SamplerConfig,
    dtype: str,
    device: str,
    autocast: str | None,
    kl: bool,
    recorder: Recorder | None = None,
) -> RedrawingSampler:
    """Likewise, of a model that is no cascade."""
    policy = _policy(model, dtype, device, autocast, kl)
    sampler = dataclasses.replace(sampler, shared_start_noise=False, start_churn=0.0)
    return RedrawingSampler(policy, sampler, recorder=TrajectoryRecorder() if kl else recorder)


def measures_kl(model: EvaluatedModel) -> bool:
    """Whether a model comes with the reference that it was trained from."""
    return model.kind in ("lora", "checkpoint")


def loaded_policy(model: EvaluatedModel, dtype: str) -> Policy:
    """The policy of a finished model on the host, all its parts loaded.

    Raises:
        ValueError: weights that do not fit; names them.
    """
    return _policy(model, dtype, "cpu", None, kl=False)


def _policy(model: EvaluatedModel, dtype: str, device: str, autocast: str | None, kl: bool) -> Policy:
    pipeline = dataclasses.replace(model.model, dtype=dtype, device=device)
    if model.kind == "checkpoint":
        assert model.learner is not None and model.path is not None
        learner = dataclasses.replace(
            model.learner, autocast=autocast, gradient_checkpointing=False, init_adapter=model.start if kl else None
        )
        policy = build_policy(pipeline, learner, seed=model.seed, keep_reference=kl)
        policy.weights.bind(_checkpoint_weights(model.path))
        # From here on nothing learns, and what is published to the sampler is empty.
        policy.weights.parameters = {}
        return policy
    # The reference has text encoders without adapters, so that prompts are read in every pass.
    reads = kl and model.kind == "lora" and model.path is not None and adapts_text(model.path)
    start = model.start if kl else None
    frozen = LearnerConfig(mode="frozen", autocast=autocast, init_adapter=start, text_encoders=reads)
    policy = build_policy(pipeline, frozen, seed=0, keep_reference=kl)
    if model.kind == "lora":
        assert model.path is not None
        apply_lora(policy, model.path)
    elif model.kind == "gated":
        assert model.path is not None
        read_gated(model.path).put_into(policy.weights.network)
    return policy


def _checkpoint_weights(folder: Path) -> Weights:
    """The weights that training would evaluate: the moving average where one was kept."""
    tensors = load_checkpoint(folder).tensors
    for prefix in ("ema/", "weights/"):
        chosen = {name[len(prefix) :]: tensors[name] for name in tensors if name.startswith(prefix)}
        if chosen:
            return Weights.of(0, chosen)
    raise ValueError(f"checkpoint {folder} holds no weights")


def apply_lora(policy: Any, file: Path) -> None:
    """Load a LoRA file of diffusers, kohya or PEFT into a policy; every tensor binds, or it raises.

    Args:
        policy: a `DiffusersPolicy`.
        file: *.safetensors.

    Raises:
        StartError: no LoRA in the file, or tensors that match no layer of the model; names one.
    """
    try:
        _apply_lora(policy, file)
    except UserError:
        raise
    except (RuntimeError, ValueError) as error:
        policy.adapter("models", str(file))  # tells what does not fit, where it can
        raise StartError(f"models: {error}") from error


def _apply_lora(policy: Any, file: Path) -> None:
    from diffusers.utils import logging
    from safetensors.torch import load_file

    state = load_file(file)
    if reads_by_layers(file, state, policy.NETWORK):
        adapter = policy.adapter("models", str(file))
        put_adapter(policy.weights.network, _APPLIED, adapter)
        if not policy.reads_in_passes:
            policy.fuse_text(adapter)
        policy.weights.join(_APPLIED)
        return
    # Its warnings about text encoders without LoRA would come once per model; what matters is checked below.
    logging.set_verbosity_error()
    pipeline = policy.pipeline
    if any(".lora_A." in name for name in state) and any(".lora.down." in name for name in state):
        # Of two schemes of names in one file, as earlier versions of prdp wrote them, diffusers binds one alone.
        mixed, alphas, metadata = pipeline.lora_state_dict(
            str(file.parent), weight_name=file.name, return_lora_metadata=True
        )
        mixed = {
            name.replace(".lora.down.", ".lora_A.").replace(".lora.up.", ".lora_B."): value
            for name, value in mixed.items()
        }
        with another_adapter():
            pipeline.load_lora_into_unet(mixed, alphas, pipeline.unet, adapter_name=_APPLIED, metadata=metadata)
    else:
        with another_adapter():
            pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=_APPLIED)
    encoders = [getattr(pipeline, name, None) for name in policy.FROZEN if name.startswith("text_encoder")]
    _check_bound(file, state, [policy.network, *(one for one in encoders if one is not None)])
    policy.weights.join(_APPLIED)


def reads_by_layers(file: Path, names: Collection[str], component: str) -> bool:
    """Whether a file is read as `model.adapters` is: diffusers' own loading of it would leave out or change something.

    PEFT's files have their alphas in another one. Of kohya's diffusers takes one alpha for all layers of attention, and
    of text encoders without an adapted out_proj no attention. Factors of transformers it scales, splits and fuses, so
    that they cannot be counted.
    """
    if file.name == PEFT_FILE or any(name.startswith(KOHYA_PREFIXES) for name in names):
        return True
    foreign = authors_layout(names) is not None or any(name.startswith(FOREIGN_PREFIXES) for name in names)
    return component == "transformer" and foreign


def _check_bound(file: Path, state: dict[str, Any], networks: list[Any]) -> None:
    """Every matrix of the file must be in a network; diffusers only warns about those that are not."""
    matrices = [name for name in state if name.endswith(".weight") and ("lora" in name or "down" in name)]
    inside = [
        (name, value)
        for network in networks
        for name, value in network.named_parameters()
        if (".lora_A." in name or ".lora_B." in name) and name.endswith(f".{_APPLIED}.weight")
    ]
    empty = [name for name, value in inside if value.device.type == "meta"]
    if not inside:
        raise ValueError(f"{file} holds no LoRA that fits the model; its first tensors are {list(state)[:3]}")
    if empty or len(inside) != len(matrices):
        raise ValueError(
            f"{file} holds {len(matrices)} LoRA matrices, of which {len(inside) - len(empty)} fit the model"
            + (f"; {empty[0]} got none" if empty else "")
        )
    total = sum(float(state[name].float().abs().sum()) for name in matrices)
    found = sum(float(value.detach().float().abs().sum()) for _, value in inside)
    if not math.isclose(total, found, rel_tol=1e-2):
        raise ValueError(f"{file}: not all its matrices were bound: they add up to {total:g}, the model's to {found:g}")
