"""Mixture of LoRA: what zero and one-hot gates equal, what learns, and that a saved one is the same."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from narrow_flow import narrow_pipeline
from torch.nn import functional as F

from prdp.config import LearnerConfig, ModelConfig, SamplerConfig
from prdp.diffusion import build_policy
from prdp.diffusion.adapter_files import AdaptedLayer
from prdp.diffusion.adapter_tensors import LORA_FILE
from prdp.diffusion.adapters import fuse
from prdp.evaluation.loading import build_evaluated_sampler
from prdp.evaluation.models import EvaluatedModel, find_models, model_digest
from prdp.experts.gate import Gate, Mixture, balance, entropy, usage
from prdp.experts.gate_files import frozen_average, write_gated
from prdp.experts.gate_training import GateBatch, GateTraining, average_gates
from prdp.experts.lora_files import Expert, read_expert
from prdp.experts.merge import merge_experts
from prdp.experts.methods import MeanDelta
from prdp.support.errors import ConfigError, StartError
from prdp.types import PromptBatch

FROZEN = LearnerConfig(mode="frozen")
SHARES = ["layer", "block"]
Output = Callable[[Any], torch.Tensor]


@pytest.fixture
def given(experts: list[Path]) -> list[Expert]:
    return [read_expert("models", str(file), f"e{number}") for number, file in enumerate(experts)]


def set_gates(mixture: Mixture, bias: list[float]) -> None:
    for gate in mixture.gates.values():
        gate.bias.data = torch.tensor(bias)


def with_merged(network: Any, experts: list[Expert], weights: list[float]) -> Any:
    """The network with a weighted sum of deltas in its weights."""
    from prdp.diffusion.adapter_files import Adapter

    layers = merge_experts(experts, weights, 1.0, MeanDelta()).layers
    fuse(network, Adapter(Path("x"), {name.removeprefix("unet."): one.layer for name, one in layers.items()}))
    return network


@pytest.mark.parametrize("share", SHARES)
def test_zero_gates_are_the_mean_delta_and_one_hot_ones_an_expert(
    unet: Callable[[], Any], given: list[Expert], output: Output, share: str
) -> None:
    network = unet()
    mixture = Mixture(network, given, share)
    expected = output(with_merged(unet(), given, [1 / 3] * 3))
    torch.testing.assert_close(output(network), expected, rtol=0, atol=1e-5)
    assert (expected - output(unet())).abs().max() > 1e-2
    for number in range(3):
        set_gates(mixture, [50.0 if other == number else -50.0 for other in range(3)])
        expected = output(with_merged(unet(), given[number : number + 1], [1.0]))
        torch.testing.assert_close(output(network), expected, rtol=0, atol=1e-5)
    layers = {name.removeprefix("unet.") for expert in given for name in expert.layers}
    assert mixture.leaders.keys() == layers
    assert len(mixture.gates) == len(layers) if share == "layer" else len(mixture.gates) < len(layers) / 2


def test_a_gate_is_the_softmax_of_mean_token_and_time(
    unet: Callable[[], Any], given: list[Expert], output: Output
) -> None:
    """Of one layer, by hand, for two images at two times."""
    network = unet()
    mixture = Mixture(network, given)
    path = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    layer, gate = network.get_submodule(path), mixture.gates[path]
    torch.manual_seed(0)
    gate.weight.data.normal_()
    gate.bias.data.normal_()
    seen: dict[str, torch.Tensor] = {}
    layer.register_forward_hook(lambda module, args, result: seen.update(x=args[0], y=result))
    output(network)
    half = torch.exp(-math.log(10000) * torch.arange(16) / 16)
    angles = torch.tensor([[900.0], [30.0]]) * half
    times = torch.cat([angles.cos(), angles.sin()], 1)
    logits = torch.cat([seen["x"].mean(1), times], 1) @ gate.weight.T + gate.bias
    weights = logits.softmax(1)
    expected = F.linear(seen["x"], layer.base.weight)
    for number, expert in enumerate(given):
        one = expert.layers.get(f"unet.{path}")
        if one is not None:
            expected += weights[:, number, None, None] * one.scale * (seen["x"] @ one.down.T @ one.up.T)
    torch.testing.assert_close(seen["y"], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(mixture.said()[path], weights)
    assert (weights[0] - weights[1]).abs().max() > 1e-2


def test_layers_of_a_block_share_the_gate_of_its_first(unet: Callable[[], Any], given: list[Expert]) -> None:
    leaders = Mixture(unet(), given, "block").leaders
    block = "mid_block.attentions.0.transformer_blocks.0"
    inside = {layer: leader for layer, leader in leaders.items() if layer.startswith(block)}
    assert set(inside.values()) == {f"{block}.attn1.to_q"} and len(inside) == 9
    assert leaders["mid_block.resnets.1.conv1"] == "mid_block.resnets.1.conv1"


def test_the_balance_has_no_gradient_at_even_use_and_draws_back_to_it() -> None:
    def value(logits: torch.Tensor) -> torch.Tensor:
        return balance({"a": logits.softmax(1), "b": logits.flip(0).softmax(1)})

    even = torch.zeros(4, 3, requires_grad=True)
    value(even).backward()
    assert even.grad is not None and even.grad.abs().max() < 1e-7
    assert float(value(even).detach()) == pytest.approx(3 * math.log(3))
    # Each image decided, all experts used alike: as good.
    decided = (8.0 * torch.eye(3)).requires_grad_()
    value(decided).backward()
    assert decided.grad is not None and decided.grad.abs().max() < 1e-6
    uneven = torch.tensor([[2.0, 0.0, 0.0]] * 4, requires_grad=True)
    value(uneven).backward()
    assert uneven.grad is not None and (uneven.grad[:, 0] > 0).all() and (uneven.grad[:, 1:] < 0).all()
    said = {"a": torch.tensor([[0.2, 0.8], [0.4, 0.6]]), "b": torch.tensor([[0.5, 0.5], [0.9, 0.1]])}
    torch.testing.assert_close(usage(said), torch.tensor([0.5, 0.5]))
    by_hand = -np.mean([sum(p * math.log(p) for p in row) for row in ([0.2, 0.8], [0.4, 0.6], [0.5, 0.5], [0.9, 0.1])])
    assert entropy(said) == pytest.approx(by_hand)


@pytest.fixture(scope="module")
def model(small_pipeline: Path) -> ModelConfig:
    return ModelConfig(path=str(small_pipeline), device="cpu")


def batches(policy: Any) -> Iterator[GateBatch]:
    rng = np.random.default_rng(0)
    conditions = policy.encode(["red", "blue", "green"])
    for _ in itertools.count():
        yield GateBatch(rng.standard_normal((3, *policy.latent_shape), dtype=np.float32), conditions)


def trained(model: ModelConfig, experts: list[Expert]) -> tuple[Any, Mixture]:
    policy: Any = build_policy(model, FROZEN, seed=0, keep_reference=False)
    mixture = Mixture(policy.network, experts)
    list(training(policy, mixture).learn(batches(policy)))
    return policy, mixture


def training(policy: Any, mixture: Mixture, **settings: Any) -> GateTraining:
    return GateTraining(
        policy, mixture, **{"steps": 3, "learning_rate": 0.05, "balance_weight": 0.01, "seed": 0, **settings}
    )


def frozen_tensors(network: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in (*network.named_parameters(), *network.named_buffers())}


def test_only_gates_learn(model: ModelConfig, given: list[Expert]) -> None:
    policy: Any = build_policy(model, FROZEN, seed=0, keep_reference=False)
    mixture = Mixture(policy.network, given)
    before = frozen_tensors(policy.network)
    inside = [name for name, _ in policy.network.named_buffers() if name.endswith((".down", ".up"))]
    assert len(inside) == 2 * len(mixture.leaders)
    steps = list(training(policy, mixture).learn(batches(policy)))
    for name, value in (*policy.network.named_parameters(), *policy.network.named_buffers()):
        assert value.equal(before[name]) and value.grad is None and not value.requires_grad
    assert sum(value.abs().max() > 0 for value in mixture.parameters.values()) == len(mixture.parameters)
    assert [one["step"] for one in steps] == [0, 1, 2]
    assert steps[0]["entropy"] == pytest.approx(math.log(3)) and steps[2]["entropy"] < steps[0]["entropy"]
    assert steps[0]["usage"] == pytest.approx({"e0": 1 / 3, "e1": 1 / 3, "e2": 1 / 3})
    _, again = trained(model, given)
    assert all(value.equal(again.parameters[name]) for name, value in mixture.parameters.items())
    batch = next(batches(policy))
    harmed = iter([GateBatch(batch.latents * np.float32("nan"), batch.conditions)])
    with pytest.raises(ConfigError, match=r"gate\.learning_rate=0\.05: at step 0 the loss is nan"):
        next(training(policy, mixture).learn(harmed))


def test_the_gradient_is_that_of_the_error_and_the_balance(model: ModelConfig, given: list[Expert]) -> None:
    """With a large weight of the balance, gates that favour one expert go back to even use."""
    policy: Any = build_policy(model, FROZEN, seed=0, keep_reference=False)
    mixture = Mixture(policy.network, given)
    set_gates(mixture, [3.0, 0.0, 0.0])
    rates = {"steps": 4, "learning_rate": 0.6, "balance_weight": 1e4}
    steps = list(training(policy, mixture, **rates).learn(batches(policy)))
    assert steps[0]["usage"]["e0"] > 0.85 and steps[-1]["usage"]["e0"] < 0.6


def test_a_saved_mixture_draws_the_same_pictures(
    model: ModelConfig, given: list[Expert], tmp_path: Path
) -> None:
    policy, mixture = trained(model, given)
    write_gated(tmp_path, mixture, given, "layer", model, {"steps": 3})
    sampler = SamplerConfig(steps=3, guidance_scale=2.0)
    prompts = PromptBatch(0, 0, ("red", "blue"), ({}, {}))
    (base, gated) = find_models(["base", str(tmp_path)], model)
    assert (gated.kind, gated.model, gated.name) == ("gated", model, tmp_path.name)
    drawn = {}
    for one in (base, gated):
        built = build_evaluated_sampler(one, sampler, "float32", "cpu", None, kl=False)
        drawn[one.name] = built.sample(prompts, 2, 7, trajectory=False).images
    from prdp.diffusion.sampler import Sampler

    settings = dataclasses.replace(sampler, shared_start_noise=False)
    expected = Sampler(policy, settings).sample(prompts, 2, 7, trajectory=False).images
    np.testing.assert_array_equal(drawn[gated.name], expected)
    assert (drawn["base"] != expected).any()
    digest = model_digest(gated)
    assert digest != model_digest(base)
    # The digests of files are kept for the process, so that the changed one is another folder's.
    other = tmp_path / "other"
    other.mkdir()
    next(iter(mixture.gates.values())).bias.data += 1
    write_gated(other, mixture, given, "layer", model, {})
    assert model_digest(EvaluatedModel("other", "gated", model, other)) != digest


def test_the_frozen_average_has_the_weights_of_each_layers_gate(
    model: ModelConfig, given: list[Expert], output: Output
) -> None:
    policy, mixture = trained(model, given)
    averages = average_gates(policy, mixture, batches(policy), count=2, seed=0)
    assert averages.keys() == mixture.gates.keys()
    for value in averages.values():
        assert float(value.sum()) == pytest.approx(1.0)
    layers = frozen_average(mixture, given, averages)
    name = next(name for name in layers if name.endswith("attn2.to_v"))
    weights = averages[name.removeprefix("unet.")]
    expected = sum(
        float(weight) * one.scale * one.up @ one.down
        for weight, one in zip(weights, [expert.layers[name] for expert in given], strict=True)
    )
    torch.testing.assert_close(layers[name].up @ layers[name].down, expected, rtol=0, atol=1e-5)
    even = frozen_average(mixture, given, {path: torch.full((3,), 1 / 3) for path in averages})
    mean = merge_experts(given, [1 / 3] * 3, 1.0, MeanDelta()).layers
    assert all(torch.allclose(even[name].up, one.layer.up) for name, one in mean.items())


def test_bfloat16_and_autocast_stay_near(small_pipeline: Path, given: list[Expert], output: Output) -> None:
    policy: Any = build_policy(
        ModelConfig(path=str(small_pipeline), dtype="bfloat16"), FROZEN, seed=0, keep_reference=False
    )
    exact: Any = build_policy(ModelConfig(path=str(small_pipeline)), FROZEN, seed=0, keep_reference=False)
    results = []
    for one in (policy, exact):
        mixture = Mixture(one.network, given)
        latents, times = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([900, 30])
        with torch.no_grad():
            results.append(one.output(latents, times, one.encode(["red", "blue"]), 2.0))
        assert all(weights.dtype == torch.float32 for weights in mixture.said().values())
    assert (results[0] - results[1]).abs().max() < 0.1 * results[1].abs().max()


def test_a_flow_transformer_is_gated_alike(tmp_path: Path) -> None:
    pipeline = narrow_pipeline()
    network, generator = pipeline.transformer, torch.Generator().manual_seed(0)
    paths = ["transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.add_k_proj", "transformer_blocks.1.ff.net.2"]
    given = []
    for number in range(2):
        layers = {}
        for path in paths:
            out, inside = network.get_submodule(path).weight.shape
            down = torch.randn(2, inside, generator=generator)
            layers[f"transformer.{path}"] = AdaptedLayer(down, torch.randn(out, 2, generator=generator), 0.1)
        given.append(Expert(f"e{number}", Path("x"), f"{number}", layers))
    inputs = {
        "hidden_states": torch.randn(2, 4, 8, 8, generator=generator),
        "encoder_hidden_states": torch.randn(2, 5, 192, generator=generator),
        "pooled_projections": torch.randn(2, network.config.pooled_projection_dim, generator=generator),
        "timestep": torch.tensor([900.0, 30.0]),
    }
    results = {}
    with torch.no_grad():
        for share in SHARES:
            mixed = narrow_pipeline().transformer
            mixture = Mixture(mixed, given, share)
            results[share] = mixed(**inputs, return_dict=False)[0]
            assert len(mixture.gates) == {"layer": 3, "block": 2}[share]
        merged = merge_experts(given, [0.5, 0.5], 1.0, MeanDelta()).layers
        for name, one in merged.items():
            network.get_submodule(name.removeprefix("transformer.")).weight += one.layer.up @ one.layer.down
        expected = network(**inputs, return_dict=False)[0]
    for result in results.values():
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


def test_what_does_not_fit_is_refused(
    unet: Callable[[], Any], model: ModelConfig, given: list[Expert], tmp_path: Path
) -> None:
    name = next(iter(given[0].layers))
    layer = given[0].layers[name]

    def changed(layers: dict[str, AdaptedLayer]) -> list[Expert]:
        return [dataclasses.replace(given[0], layers=layers)]

    with pytest.raises(StartError, match=r"layer unet\.gone: the unet that is to be gated has no such layer"):
        Mixture(unet(), changed({"unet.gone": layer}))
    with pytest.raises(StartError, match=r"layer text_encoder\.x: the unet that is to be gated has no such"):
        Mixture(unet(), changed({"text_encoder.x": layer}))
    wide = AdaptedLayer(torch.ones(1, 3), layer.up[:, :1], 1.0)
    with pytest.raises(StartError, match=r"is for a layer of shape \[\d+, 3\], not \[\d+, \d+\]"):
        Mixture(unet(), changed({name: wide}))
    mixture = Mixture(unet(), given)
    tensors = {key: value.detach().clone() for key, value in mixture.parameters.items()}
    first = next(iter(tensors))
    with pytest.raises(ValueError, match="is missing"):
        mixture.load({key: value for key, value in tensors.items() if key != first})
    with pytest.raises(ValueError, match=r"has shape \[1\], expected"):
        mixture.load(tensors | {first: torch.ones(1)})
    with pytest.raises(ValueError, match="must hold finite numbers"):
        mixture.load(tensors | {first: tensors[first] * float("nan")})
    write_gated(tmp_path, mixture, given, "layer", dataclasses.replace(model, family="my.Family"), {})
    with pytest.raises(ConfigError, match="is a class of its maker's own, which is not run"):
        find_models([str(tmp_path)], model)
    text = (tmp_path / "gate.json").read_text()
    (tmp_path / "gate.json").write_text(text.replace('"format": 1', '"format": 9'))
    with pytest.raises(StartError, match="format=9: this version reads format 1"):
        find_models([str(tmp_path)], model)
    (tmp_path / "gate.json").write_text(text.replace("my.Family", model.family))
    (tmp_path / "experts" / "0" / LORA_FILE).unlink()
    with pytest.raises(StartError, match=r"is not whole: experts/0/pytorch_lora_weights\.safetensors is missing"):
        find_models([str(tmp_path)], model)
    assert Gate(4, 3).weight.shape == (3, 36)
