"""What the machine, the packages or the model cannot do is refused by validate and train alike, before any work."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from refused import refusals

from prdp.config import LearnerConfig, ModelConfig, SamplerConfig, TrainConfig
from prdp.configuration.preconditions import evidence_problems, jax_device_count_problems, transition_problems
from prdp.evidence import Denoising
from prdp.objectives import OBJECTIVES


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["learner.lora_targets=[attn1]"], ["'attn1' matches Attention", "linear layers or convolutions", "to_out.0"]),
        (["learner.lora_targets=[norm1,to_q]"], ["'norm1' matches GroupNorm", "LayerNorm"]),
        (["learner.lora_targets=[to_out]"], ["'to_out' matches ModuleList"]),
        (["learner.lora_targets=[to_qq]"], ["'to_qq' matches no layer"]),
        (["sampler.steps=1001"], ["sampler.steps is 1001, expected 1 to 1000"]),
        (["sampler.steps=1000", "sampler.timestep_spacing=leading"], ["sampler.steps is 1000", "1000, and 999"]),
        (
            ["objective=prdp", "sampler=ddpm50", "sampler.deterministic_final_steps=0", "sampler.steps=1"],
            ["no step would draw noise"],
        ),
        (
            ["sampler.guidance_scale=1", "sampler.negative_prompt=blurry"],
            ["sampler.negative_prompt='blurry': must be null where there is no branch without prompt", "scale=1)"],
        ),
        (["model.height=12"], ["model.height=12: must be a multiple of 8 pixels, such as 8 or 16"]),
        (["model.height=16"], ["reward: shapes_judge scores square pictures, not 16 x 8 (height x width)"]),
        (["reward=quadratic_of_point"], ["quadratic_of_point scores points", "not pictures of 8 x 8"]),
        (
            ["learner.framework=jax", "learner.optimizer=adamw", "learner.jax_data=64", "learner.jax_fsdp=2"],
            ["learner.jax_data=64 and learner.jax_fsdp=2: need 128 devices of JAX, and this process has"],
        ),
        (["model.device=cuda"], ["model.device=cuda: torch", "no CUDA"]),
        (["model.device=cuda:7"], ["model.device=cuda:7: torch"]),
        (["model.device=mps"], ["model.device=mps: this machine has none"]),
        (["reward=clipscore", "reward.device=cuda", "reward.path={clip}"], ["reward.device=cuda: torch"]),
        (["cluster=ray", "cluster.learner_gpus=1"], ["asks for 1 GPUs", "this machine has none"]),
        (["cluster=ray", "cluster.sampler_gpus=0.5"], ["asks for 1 GPUs", "samplers=2 x sampler_gpus=0.5"]),
        (["cluster=ray", "cluster.sampler_gpus=1", "model.device=cuda:1"], ["cuda:1: an actor sees the 1 GPU"]),
        (["cluster=ray", "cluster.sampler_resources={a100:1}"], ["cluster.sampler_resources", "has no 'a100'"]),
        (["cluster=ray", "cluster.reward_resources.a100=1"], ["cluster.reward_resources", "has no 'a100'"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_what_this_machine_or_this_network_cannot_do(
    here: Path,
    model_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    says: list[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    clip = here / "clip"
    if any("{clip}" in word for word in words):
        monkeypatch.setattr("prdp.rewards.clipscore.CLIPScore.check", lambda **arguments: None)
    message = refusals(capsys, f"model.path={model_folder}", *(word.replace("{clip}", str(clip)) for word in words))
    for text in says:
        assert text in message


def test_devices_of_jax_are_counted_without_taking_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE", raising=False)
    assert jax_device_count_problems(LearnerConfig(framework="jax", jax_data=10**6))
    assert os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"


def test_a_jax_without_devices_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import jax

    def devices() -> None:
        raise RuntimeError("Unable to initialize backend 'cuda'\nand why")

    monkeypatch.setattr(jax, "devices", devices)
    [problem] = jax_device_count_problems(LearnerConfig(framework="jax", jax_data=2))
    assert problem == "learner.framework=jax: JAX finds no devices: Unable to initialize backend 'cuda'"


def test_a_sampler_whose_only_step_draws_no_noise() -> None:
    model = ModelConfig(family="gaussian_mixtures")
    for kind in ("ddpm", "ddim"):
        sampler = SamplerConfig(kind=kind, steps=1)
        [problem] = transition_problems(model, sampler, needs_log_probs=True)
        assert problem.startswith("sampler.steps=1: no step would draw noise")
        assert transition_problems(model, sampler, needs_log_probs=False) == []


@pytest.mark.parametrize(
    ("word", "missing", "says"),
    [
        ("tracking.tensorboard=true", "tensorboard", "pip install 'prdp[tensorboard]'"),
        ("tracking.wandb=offline", "wandb", "pip install 'wandb'"),
        ("learner.framework=jax", "jax", "pip install 'prdp[jax]'"),
        ("learner.framework=jax", "flax", "pip install 'prdp[jax]'"),
        ("learner.framework=jax", "optax", "pip install 'prdp[jax]'"),
        ("cluster=ray", "ray", "pip install 'ray'"),
    ],
)
def test_packages_that_are_not_installed(
    here: Path,
    model_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    word: str,
    missing: str,
    says: str,
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == missing else find(name, *rest))
    message = refusals(capsys, f"model.path={model_folder}", word)
    assert f"needs {missing}, which is not installed: {says}" in message


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, []),
        ({"columns": lambda self, *of: 0}, ["Own.columns says 0, must be a whole number of at least 1"]),
        ({"columns": lambda self, *of: 2.0}, ["Own.columns says 2.0, must be a whole number of at least 1"]),
        ({"stored_latents": lambda self, *of: 3.0}, ["Own.stored_latents says 3.0, must be a number for each name"]),
    ],
)
def test_evidence_that_does_not_tell_its_size_is_refused(
    members: dict[str, Any], message: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = dataclasses.dataclass(frozen=True)(type("Own", (Denoising,), members))()
    monkeypatch.setitem(OBJECTIVES, "best_of_n", dataclasses.replace(OBJECTIVES["best_of_n"], evidence=own))
    mixtures = ModelConfig(family="gaussian_mixtures", path="gaussian_mixtures")
    config = TrainConfig(output_dir="x", reward={}, model=mixtures, objective={"name": "best_of_n"})
    found = evidence_problems(config)
    assert len(found) == len(message)
    assert all(text in line for text, line in zip(message, found, strict=True))


@pytest.mark.parametrize(
    ("objective", "microbatch", "idle"),
    [("crd", 64, True), ("crd", 63, False), ("prdp", 1024, False), ("nft", 64, False)],
)
def test_coefficients_that_are_not_known_before_are_not_left_out(objective: str, microbatch: int, idle: bool) -> None:
    mixtures = ModelConfig(family="gaussian_mixtures", path="gaussian_mixtures")
    learner = LearnerConfig(microbatch=microbatch, least_coefficient=0.1)
    config = TrainConfig(output_dir="x", reward={}, model=mixtures, objective={"name": objective}, learner=learner)
    says = "learner.least_coefficient=0.1: has no effect where learner.microbatch=64 holds a group, 64 cells"
    assert [problem[: len(says)] for problem in evidence_problems(config)] == [says] * idle


def test_a_class_that_is_no_policy_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refusals(capsys, "model.family=prdp.config.ModelConfig")
    assert "model.family=prdp.config.ModelConfig: prdp.config.ModelConfig lacks load, check, learner_p" in message
    assert "must be a class that answers prdp.diffusion.policy.Policy" in message


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["sampler.kind=flow_sde"], "sampler.kind is 'flow_sde', expected one of ddim, ddpm"),
        (["sampler.kind=dance_sde", "sampler.eta=3"], "sampler.kind is 'dance_sde', expected one of ddim, ddpm"),
        (["experiment=mixtures_small", "sampler.kind=cps"], "sampler.kind is 'cps', expected one of ddim, ddpm"),
        (["sampler.timestep_spacing=scheduler"], "expected one of leading, trailing, linspace"),
        (["sampler.shift=3"], "sampler.shift is 3, expected null for a model that is no flow"),
        (["model=shapes_flow"], "edm_churn, euler for a flow, such as by sampler=flow_sde or sampler=cps"),
    ],
)
def test_a_sampler_of_another_process_is_named(
    words: list[str], says: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in refusals(capsys, *words)
