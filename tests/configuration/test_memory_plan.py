"""The recipes of released models: they start, and their plans, by configurations in true size, fit their cards."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from composing import compose
from released_configs import MODELS, PARAMETERS, write

from prdp.config import LearnerConfig, ModelConfig, TrainConfig
from prdp.configuration.bounds import check_bounds, objective_problems
from prdp.configuration.geometry import geometry_text
from prdp.configuration.memory_plan import DevicePlan, device_plans
from prdp.configuration.preconditions import model_problems
from prdp.configuration.typed import conf_folder
from prdp.diffusion import dry_run, family_of, model_folder
from prdp.diffusion.pipeline_checks import empty_network, empty_part
from prdp.diffusion.precision import repeated_blocks

CARDS = {
    "sd15_lora": 24, "sdxl_lora": 24, "sd35_medium_lora": 24, "sd35_medium_8gpus": 80, "flux_dev_lora": 80,
    "z_image_lora": 80,
}  # fmt: skip
"""Recipe -> GiB of its card; PickScore and CLIP take 5 of it."""
REWARDS = 5 * 2**30


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("released")
    for model in MODELS:
        write(folder / model, model)
    return folder


def header_commands(file: Path) -> list[list[str]]:
    """The commands in the comments of a recipe, as words."""
    return [shlex.split(one)[2:] for one in re.findall(r"^#\s+(prdp train .*)$", file.read_text(), re.MULTILINE)]


def composed(released: Path, words: list[str]) -> TrainConfig:
    config = compose(*words, "output_dir=x")
    model = dataclasses.replace(config.model, path=str(released / config.model.path), variant=None)
    return dataclasses.replace(config, model=model)


@pytest.mark.slow
@pytest.mark.parametrize("name", CARDS)
def test_recipes_start_and_fit(name: str, released: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_folder, "_check_weights", lambda *_: None)
    file = conf_folder() / "experiment" / f"{name}.yaml"
    header = file.read_text().split("\ndefaults:")[0]
    guidance = set()
    for words in header_commands(file):
        config = composed(released, words)
        check_bounds(config)
        assert objective_problems(config) == []
        assert model_problems(config.model, config.sampler, config.learner) == []
        guidance.add(config.sampler.guidance_scale > 1)
        assert set(config.reward["terms"]) == {"pickscore", "clipscore", "incompressibility"}
        assert (config.objective["name"], config.objective["evidence"]) == ("prdp", "denoising")
        for plan in device_plans(config) if len(guidance) == 1 else ():  # the first command's
            assert plan.peak + (0 if plan.name == "learner" else REWARDS) < CARDS[name] * 2**30, plan
            assert f"{plan.peak / 2**30:.0f} GiB" in header, plan
    assert guidance == {True, False}


def test_the_shape_that_papers_compare_on() -> None:
    config = compose(*header_commands(conf_folder() / "experiment" / "sd35_medium_8gpus.yaml")[0])
    learner = config.learner
    assert (config.prompts_per_epoch, config.images_per_prompt, config.sampler.steps) == (48, 24, 10)
    assert (config.model.height, config.model.width) == (512, 512)
    assert (learner.lora_rank, learner.lora_alpha, learner.learning_rate) == (32, 64.0, 3e-4)


@pytest.mark.parametrize("name", MODELS)
def test_released_sizes(name: str, released: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_folder, "_check_weights", lambda *_: None)
    kind: Any = next(
        one for one in (family_of(ModelConfig(family=f)) for f in _FAMILIES) if one.FORMAT.pipeline == MODELS[name][0]  # type: ignore[attr-defined]
    )
    count = sum(value.numel() for value in empty_network(released / name, kind.FORMAT).parameters())
    assert count / 1e6 == pytest.approx(PARAMETERS[name], rel=0.015)


_FAMILIES = ("stable_diffusion", "stable_diffusion_xl", "stable_diffusion_3", "flux", "z_image")


@pytest.mark.parametrize("checkpointing", [False, True])
def test_blocks_run_once_count_as_often_as_they_are_called(checkpointing: bool, small_flow: ModelConfig) -> None:
    """Against the same pass with real numbers, in which every operation's memory is counted."""
    learner = LearnerConfig(lora_rank=2, gradient_checkpointing=checkpointing)
    kind: Any = family_of(small_flow)
    folder = Path(small_flow.path)
    shapes = kind.condition_shapes(small_flow)
    dry = dry_run.DryPolicy(kind, small_flow, learner, empty_network(folder, kind.FORMAT), shapes)
    policy: Any = kind.load(small_flow, learner, keep_reference=False)
    conditions = dataclasses.replace(policy.encode(["a", "b"]), empty=None)
    latents, times = torch.zeros(2, *policy.latent_shape), torch.full((2,), 0.5)
    with dry_run._Live() as live:
        policy.output(latents, times, conditions, 1.0).sum().backward()
    assert 0.9 < dry.with_gradient(2) / live.peak < 1.5
    with torch.no_grad(), dry_run._Live() as live:
        policy.output(latents, times, conditions, 1.0)
    assert 0.9 < dry.without_gradient(2, float32=False) / live.peak < 1.3


def test_adapters_are_converted_for_all_blocks_that_are_computed_again(
    small_flow: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = LearnerConfig(lora_rank=2, autocast="bfloat16", gradient_checkpointing=True)
    kind: Any = family_of(small_flow)
    network = empty_network(Path(small_flow.path), kind.FORMAT)
    dry = dry_run.DryPolicy(kind, small_flow, learner, network, kind.condition_shapes(small_flow))
    converted = dry.with_gradient(2)
    monkeypatch.setattr(kind, "converts_adapters", None)
    assert converted - dry.with_gradient(2) == 2 * dry.learning


@pytest.fixture(scope="module")
def small_flow(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    from narrow_transformers import narrow_sd3

    folder = tmp_path_factory.mktemp("sd3")
    narrow_sd3().save_pretrained(folder)
    return ModelConfig(
        family="stable_diffusion_3", path=str(folder), height=32, width=32, max_sequence_length=5, device="cpu"
    )


@pytest.mark.slow
def test_fewer_bits_and_other_optimizers_are_counted(small_flow: ModelConfig) -> None:
    config = compose("sampler=euler", "objective=prdp_denoising", "learner.lora_targets=[attn.to_q]", "output_dir=x")
    config = dataclasses.replace(config, model=small_flow)

    def held(optimizer: str = "adamw", quantization: str | None = None) -> dict[str, int]:
        learner = dataclasses.replace(config.learner, optimizer=optimizer)
        model = dataclasses.replace(small_flow, quantization=quantization)
        [one] = device_plans(dataclasses.replace(config, learner=learner, model=model))
        return dict(one.held)

    plain, of_prodigy, of_8_bits = held(), held("prodigy"), held("adamw_8bit")
    key = "adapters with gradients and moments"
    weights = (of_prodigy[key] - plain[key]) / 8
    assert plain[key] - of_8_bits[key] == pytest.approx((8 - 2 - 2 * 4 / 256) * weights, abs=1)
    network: Any = family_of(small_flow)
    linear = [
        one
        for block in repeated_blocks(empty_network(Path(small_flow.path), network.FORMAT))
        for one in block.modules()
        if isinstance(one, torch.nn.Linear)
    ]
    numbers, rows = sum(one.weight.numel() for one in linear), sum(one.out_features for one in linear)
    assert plain["network"] - held(quantization="int8")["network"] == 3 * numbers - 4 * rows


@pytest.mark.slow
def test_text_encoders_that_learn_are_counted(small_flow: ModelConfig) -> None:
    """Their weights at the learner, their adapters, and what a pass keeps of them for its gradient."""
    config = compose("sampler=euler", "objective=prdp_denoising", "learner.lora_targets=[attn.to_q]", "output_dir=x")
    ray = dataclasses.replace(config.cluster, kind="ray")
    kind: Any = family_of(small_flow)
    folder = Path(small_flow.path)
    clips = [empty_part(folder, name, kind.FORMAT) for name in kind.ADAPTED_ENCODERS]

    def plan(learns: bool) -> DevicePlan:
        learner = dataclasses.replace(config.learner, text_encoders=learns)
        return device_plans(dataclasses.replace(config, model=small_flow, learner=learner, cluster=ray))[0]

    frozen, learning = plan(False), plan(True)
    assert learning.held["text encoders"] == 4 * sum(value.numel() for one in clips for value in one.parameters())
    linear = [part for one in clips for name, part in one.named_modules() if name.endswith("_proj")]
    numbers = sum(16 * (one.in_features + one.out_features) for one in linear)
    key = "adapters with gradients and moments"
    assert learning.held[key] - frozen.held[key] == numbers * (4 + 8 + 8)
    [what] = [one for one in frozen.passing if one.startswith("learning")]
    assert learning.passing[what] > frozen.passing[what]

    model = dataclasses.replace(small_flow, device="cpu")
    learner = dataclasses.replace(config.learner, text_encoders=True, lora_targets=["attn.to_q"])
    shapes, encoders = kind.token_shapes(model), dict(zip(kind.ADAPTED_ENCODERS, clips, strict=True))
    dry = dry_run.DryPolicy(kind, model, learner, empty_network(folder, kind.FORMAT), shapes, encoders)
    policy: Any = kind.load(model, learner, keep_reference=False)
    conditions = dataclasses.replace(policy.encode(["a", "b"]), empty=None)
    latents, times = torch.zeros(2, *policy.latent_shape), torch.full((2,), 0.5)
    with dry_run._Live() as live:
        policy.output(latents, times, conditions, 1.0).sum().backward()
    assert 0.9 < dry.with_gradient(2, prompts=2) / live.peak < 1.5


@pytest.mark.slow
def test_a_plan_tells_processes_apart(small_flow: ModelConfig) -> None:
    lora = {"lora_targets": ["attn.to_q"]}
    words = ["sampler=euler", "objective=prdp_denoising", "output_dir=x"]
    config = dataclasses.replace(compose(*words), model=dataclasses.replace(small_flow, offload_encoders=True))
    config = dataclasses.replace(config, learner=dataclasses.replace(config.learner, **lora))
    [one] = device_plans(config)
    assert one.host > 0 and "encoding prompts" in one.passing and "text encoders" not in one.held
    assert one.peak == sum(one.held.values()) + max(one.passing.values())
    text = geometry_text(config)
    assert "memory, one process" in text and "waiting on the host" in text
    away = dataclasses.replace(config, model=dataclasses.replace(config.model, offload_vae=True))
    [other] = device_plans(away)
    vae = one.held["VAE"]
    assert "VAE" not in other.held and other.host == one.host + vae
    assert other.passing["decoding them"] == one.passing["decoding them"] + vae
    ray = dataclasses.replace(config, cluster=dataclasses.replace(config.cluster, kind="ray"))
    learner, sampler = device_plans(ray)
    assert "VAE" not in learner.held and learner.held["network"] == sampler.held["network"] == one.held["network"]
    full = dataclasses.replace(config, learner=dataclasses.replace(config.learner, mode="full"))
    [both] = device_plans(full)
    assert both.held["network"] >= 2 * one.held["network"], "two networks learn apart, in float32"
    sizes = [dataclasses.replace(config.cluster, kind="ray", learners=4, fsdp_size=size) for size in (1, 4)]
    whole, part = (device_plans(dataclasses.replace(full, cluster=one))[0] for one in sizes)
    assert set(part.held) == {f"1/4 of {what}" for what in whole.held}
    for what, size in whole.held.items():
        assert part.held[f"1/4 of {what}"] == pytest.approx(size / 4, abs=1)
    for what, size in whole.passing.items():
        # What is gathered: at most two whole networks, since this one has few blocks, and their gradients.
        assert 0 < part.passing[what] - size < 4 * whole.held["network"] + 3 * whole.held["network"]
