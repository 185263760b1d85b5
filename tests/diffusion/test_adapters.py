"""Adapters of a model, against diffusers' and peft's own loading."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from lora_exports import LEARNER, SAMPLER, diffusers_output, exported, kohya, moved, output, policy_of
from narrow_flow import narrow_pipeline
from safetensors.torch import save_file
from usage_program import run_program

from prdp.config import LearnerConfig, ModelConfig, SamplerConfig
from prdp.configuration.preconditions import model_problems
from prdp.diffusion import family_of
from prdp.diffusion.noise import ImageNoise
from prdp.diffusion.sampler import Sampler
from prdp.support.errors import StartError
from prdp.types import PromptBatch

PROMPT = "a small red circle"
FLOW_TARGETS = ["attn.to_q", "attn.add_q_proj", "proj_out"]


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    path = tmp_path_factory.mktemp("sd3")
    narrow_pipeline().save_pretrained(path)
    return ModelConfig(family="stable_diffusion_3", path=str(path), max_sequence_length=2, device="cpu")


@pytest.mark.slow
def test_frozen_adapters_are_those_of_diffusers(folder: Path, style: Path, tmp_path: Path) -> None:
    base = ModelConfig(path=str(folder))
    other = exported(base, tmp_path, 1, lora_rank=3, lora_alpha=2.0, lora_targets=["to_k", "conv1", "linear_1"])
    third = kohya(style, tmp_path, lambda layer: 2.5)
    files, weights = [style, other, third], [0.7, 1.0, -0.4]
    model = ModelConfig(path=str(folder), adapters=[str(style.parent), *map(str, files[1:])], adapter_weights=weights)
    expected = diffusers_output(folder, files, weights)
    assert (expected - output(policy_of(base).network)).abs().max() > 1e-2
    for learner in (LEARNER, LearnerConfig(mode="frozen")):
        torch.testing.assert_close(output(policy_of(model, learner).network), expected, rtol=0, atol=1e-6)
    fused = policy_of(model, LearnerConfig(mode="full"))
    torch.testing.assert_close(output(fused.network), expected, rtol=1e-4, atol=1e-5)
    with fused.reference() as reference:
        assert torch.equal(output(reference), output(fused.network))


def test_a_folder_of_peft_is_what_peft_computes(
    folder: Path, peft_folder: Path, peft_model: Any, style: Path
) -> None:
    policy = policy_of(ModelConfig(path=str(folder), adapters=[str(peft_folder)]))
    torch.testing.assert_close(output(policy.network), output(peft_model), rtol=0, atol=1e-6)
    both = policy_of(ModelConfig(path=str(folder), adapters=[str(peft_folder), str(style)]))
    assert (output(both.network) - output(peft_model)).abs().max() > 1e-2


def test_the_start_is_the_reference_and_one_adapter_learns(folder: Path, style: Path, peft_folder: Path) -> None:
    model = ModelConfig(path=str(folder), adapters=[str(style), str(peft_folder)], adapter_weights=[0.5, 2.0])
    policy = policy_of(model)
    plain = policy_of(ModelConfig(path=str(folder)))
    assert policy.weights.parameters.keys() == plain.weights.parameters.keys()
    assert policy.weights.export(0).checksum == plain.weights.export(0).checksum
    start = output(policy.network)
    with policy.reference() as reference:
        assert torch.equal(output(reference), start)
    frozen = {n: v.clone() for n, v in policy.network.named_parameters() if n not in policy.weights.parameters}
    latents, states = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 16)
    policy.network(latents, torch.tensor([900, 30]), states, return_dict=False)[0].square().sum().backward()
    with_gradient = {name for name, value in policy.network.named_parameters() if value.grad is not None}
    assert with_gradient == policy.weights.parameters.keys()
    assert any(value.grad.any() for value in policy.weights.parameters.values())
    policy.weights.bind(moved(policy.weights.export(0)))
    assert not torch.allclose(output(policy.network), start, atol=1e-3)
    with policy.reference() as reference:
        assert torch.equal(output(reference), start)
    for name, value in policy.network.named_parameters():
        assert name in policy.weights.parameters or torch.equal(value, frozen[name])


def test_half_precision_starts_at_the_reference(folder: Path, style: Path) -> None:
    model = ModelConfig(path=str(folder), adapters=[str(style)], dtype="bfloat16")
    latents, times = torch.randn(2, 4, 8, 8), torch.tensor([900, 30])
    for mode in ("lora", "full"):
        policy = policy_of(model, dataclasses.replace(LEARNER, mode=mode))
        conditions = policy.encode([PROMPT] * 2)
        with torch.no_grad(), policy.float32(), policy.reference() as reference:
            theirs = policy.output(latents, times, conditions, 1.0, reference)
        with torch.no_grad(), policy.float32():
            assert torch.equal(policy.output(latents, times, conditions, 1.0), theirs)


def test_transformers_take_adapters_too(flow: ModelConfig, tmp_path: Path) -> None:
    first = exported(flow, tmp_path / "first", 0, lora_rank=4, lora_alpha=6.0, lora_targets=["attn.to_q", "ff.net.2"])
    begun = exported(flow, tmp_path / "second", 1, lora_rank=2, lora_alpha=3.0, lora_targets=FLOW_TARGETS)
    model = dataclasses.replace(flow, adapters=[str(first)], adapter_weights=[0.5])
    learner = dataclasses.replace(LEARNER, lora_targets=FLOW_TARGETS, init_adapter=str(begun))
    assert model_problems(model, SamplerConfig(kind="cps", eta=0.8, steps=4, guidance_scale=1.0), learner) == []
    pipeline = StableDiffusion3Pipeline.from_pretrained(flow.path, text_encoder_3=None, tokenizer_3=None)
    for name, file in (("first", first), ("second", begun)):
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=name)
    pipeline.set_adapters(["first", "second"], [0.5, 1.0])
    policy = policy_of(model, learner)
    torch.testing.assert_close(output(policy.network, flow), output(pipeline.transformer, flow), rtol=0, atol=1e-6)
    with policy.reference() as reference:
        assert torch.equal(output(reference, flow), output(policy.network, flow))
    unknown = {f"lora_unet_x.lora_{part}.weight": torch.ones(1, 1) for part in ("up", "down")}
    save_file(unknown, tmp_path / "k.safetensors")
    with pytest.raises(StartError, match=r"k\.safetensors: lora_unet_x\.lora_\w+\.weight"):
        family_of(flow).check(dataclasses.replace(flow, adapters=[str(tmp_path / "k.safetensors")]))


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_the_program_beside_an_export_makes_the_pictures_of_the_sampler(
    folder: Path, style: Path, peft_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    model = ModelConfig(path=str(folder), adapters=[str(style), str(peft_folder)], adapter_weights=[0.5, 1.0])
    policy = policy_of(model, dataclasses.replace(LEARNER, mode=mode))
    policy.weights.bind(moved(policy.weights.export(0)) if mode == "lora" else policy.weights.export(0))
    policy.save(tmp_path / "weights")
    expected = Sampler(policy, SAMPLER).sample(PromptBatch(0, 0, (PROMPT,), ({},)), 1, 5, trajectory=False).images[0]
    text = policy.usage(model, SAMPLER, mode, tmp_path / "weights", PROMPT)
    noise = ImageNoise(5, 0, np.array([0]), np.array([0]), policy.latent_shape)
    picture = run_program(text, tmp_path, monkeypatch, noise)
    assert np.abs(picture.astype(int) - expected).max() <= 1


@pytest.mark.slow
def test_the_jax_twin_has_frozen_adapters_in_its_weights(folder: Path, style: Path, peft_folder: Path) -> None:
    jax, jax_unet = pytest.importorskip("jax"), pytest.importorskip("prdp.diffusion.jax_unet")
    model = ModelConfig(path=str(folder), adapters=[str(style), str(peft_folder)], adapter_weights=[0.5, 1.0])
    policy = policy_of(model, keep=False)
    policy.weights.bind(moved(policy.weights.export(0)))
    fixed, learning = policy.weights.fixed(), policy.weights.parameters
    jax_unet.check_adapters([*fixed, *learning])
    tensors = {name: value.detach().numpy() for name, value in {**fixed, **learning}.items()}
    generator = torch.Generator().manual_seed(0)
    latents, states = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 5, 16, generator=generator)
    unet = jax_unet.UNet(dict(policy.network.config), lora_scale=LEARNER.lora_alpha / LEARNER.lora_rank)
    found = jax.jit(unet.__call__)(tensors, latents.numpy(), np.array([900, 30]), states.numpy())
    np.testing.assert_allclose(np.asarray(found), output(policy.network).numpy(), rtol=0, atol=2e-5)


def test_the_reference_is_what_pefts_own_switch_makes_and_no_flag_stays_behind(folder: Path) -> None:
    policy = policy_of(ModelConfig(path=str(folder)))
    policy.weights.bind(moved(policy.weights.export(0)))
    gradients = {name: value.requires_grad for name, value in policy.network.named_parameters()}
    adapted = output(policy.network)
    with pytest.raises(KeyError), policy.reference() as network:
        reference = output(network)
        raise KeyError
    assert torch.equal(output(policy.network), adapted)
    assert {name: value.requires_grad for name, value in policy.network.named_parameters()} == gradients
    policy.network.disable_adapters()
    assert torch.equal(output(policy.network), reference)
    assert not torch.equal(adapted, reference)
