"""A frozen network in 8 or 4 bits: its numbers, its gradients, the policies of all families, what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composing import compose
from narrow_transformers import NARROW, TEXT_TOKENS
from narrow_xl import narrow_xl

from prdp.config import LearnerConfig, ModelConfig, SamplerConfig
from prdp.configuration.bounds import check_bounds, check_family
from prdp.diffusion import build_policy, build_sampler, family_of, quantization
from prdp.diffusion.quantization import QuantizedLinear, is_quantized, quantization_problems
from prdp.evidence.trajectory import TrajectoryRecorder
from prdp.learners import build_learner
from prdp.support.errors import ConfigError, StartError
from prdp.types import PromptBatch

KINDS = ("int8", "nf4")
NF4 = (
    -1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0,
)  # fmt: skip
"""The 16 normal floats, as the paper's appendix E prints them."""
PROMPTS = PromptBatch(2, 3, ("a large red circle", "two small stars"), ({}, {}))
FAMILIES = ("stable_diffusion", "stable_diffusion_xl", *NARROW)
TARGETS = {"z_image": ["attention.to_q", "attention.to_v"]}


def needed(kind: str) -> None:
    if kind == "nf4":
        pytest.importorskip("bitsandbytes")


def linear(dtype: torch.dtype = torch.float32) -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(96, 40).to(dtype).requires_grad_(False)


def test_int8_is_its_formula() -> None:
    plain = linear()
    scales = plain.weight.abs().amax(1, keepdim=True) / 127
    layer = QuantizedLinear(plain, "int8")
    assert torch.equal(layer.widened(), (plain.weight / scales).round() * scales)
    assert layer.weight.dtype == torch.int8 and layer.weight.shape == (40, 96)
    empty = torch.nn.Linear(4, 2).requires_grad_(False)
    torch.nn.init.zeros_(empty.weight)
    assert not QuantizedLinear(empty, "int8").widened().any()


def test_nf4_is_the_nearest_of_16_numbers() -> None:
    needed("nf4")
    plain = linear()
    blocks = plain.weight.flatten().view(-1, 64)
    largest = blocks.abs().amax(1, keepdim=True)
    table = torch.tensor(NF4)
    wanted = table[(blocks / largest)[..., None].sub(table).abs().argmin(-1)] * largest
    layer = QuantizedLinear(plain, "nf4")
    torch.testing.assert_close(layer.widened().flatten(), wanted.flatten(), rtol=1e-6, atol=1e-7)
    assert layer.weight.numel() == plain.weight.numel() // 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("autocast", [False, True])
def test_a_layer_computes_with_its_widened_weight_and_keeps_nothing_of_it(kind: str, autocast: bool) -> None:
    needed(kind)
    layer = QuantizedLinear(linear(torch.bfloat16 if autocast else torch.float32), kind)
    input = torch.randn(5, 96, requires_grad=True)
    plain = torch.nn.Linear(96, 40).requires_grad_(False)
    plain.weight.data, plain.bias.data = layer.widened().float(), layer.bias.data.float()
    saved: list[torch.Tensor] = []
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        with torch.autograd.graph.saved_tensors_hooks(lambda value: saved.append(value) or value, lambda value: value):
            output = layer(input)
        expected = plain(input)
    assert output.dtype == expected.dtype and all(value.shape != (40, 96) for value in saved)
    tolerance = 2e-2 if autocast else 1e-5
    torch.testing.assert_close(output, expected, rtol=tolerance, atol=tolerance)
    [got], [wanted] = (torch.autograd.grad(one.float().square().sum(), input) for one in (output, expected))
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=10 * tolerance)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelConfig]:
    found = {"stable_diffusion": ModelConfig(path="shapes", device="cpu")}
    for family in FAMILIES[1:]:
        folder = tmp_path_factory.mktemp(family)
        (narrow_xl() if family == "stable_diffusion_xl" else NARROW[family]()).save_pretrained(folder)
        found[family] = ModelConfig(
            family=family,
            path=str(folder),
            height=32,
            width=32,
            max_sequence_length=TEXT_TOKENS.get(family),
            device="cpu",
        )
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "kind"), [*((family, "nf4") for family in FAMILIES), ("stable_diffusion_xl", "int8"), ("flux", "int8")]
)
def test_every_family_learns_beside_a_quantised_network(
    family: str, kind: str, folders: dict[str, ModelConfig]
) -> None:
    """The reference is the quantised network without the adapter; the guard holds, in float32 and in bfloat16."""
    needed(kind)
    model = dataclasses.replace(folders[family], quantization=kind, dtype="bfloat16" if kind == "nf4" else "float32")
    flow = family in NARROW
    settings = SamplerConfig(kind="flow_sde" if flow else "ddim", steps=3, eta=0.7, guidance_scale=1.0)
    targets = TARGETS.get(family, ["to_q", "to_v"])
    learner = LearnerConfig(lora_rank=2, lora_targets=targets, learning_rate=1e-3)
    sampler = build_sampler(model, learner, settings, seed=0, recorder=TrajectoryRecorder())
    policy: Any = build_policy(model, learner, seed=0, keep_reference=False)
    assert is_quantized(policy.network) and policy.precision == model.dtype
    plain: Any = build_policy(folders[family], learner, seed=0, keep_reference=False)
    built = build_learner(policy, policy.process.transitions(settings), 1.0, learner, {"name": "prdp", "beta": 0.5})
    rng = np.random.default_rng(0)
    for _ in range(2):
        sampler.load_weights(built.weights())
        rollout = sampler.sample(PROMPTS, 2, seed=3)
        metrics = built.update(rollout.scored(rng.normal(size=len(rollout)), {}))
        assert metrics["parameters_without_gradient"] == 0.0
        assert metrics["ratio_error"] < 1e-5 and metrics.get("evidence_noise", 0.0) < 1e-5
    conditions = policy.encode(("a red circle",))
    latents, times = torch.randn(1, *policy.latent_shape), torch.tensor([0.5 if flow else 500.0])
    with torch.no_grad(), policy.float32(), policy.reference() as reference:
        start = policy.output(latents, times, conditions, 1.0, reference)
        unquantised = plain.output(latents, times, plain.encode(("a red circle",)), 1.0)
    change = (start - unquantised).norm() / unquantised.norm()
    assert 1e-6 < change < (0.5 if kind == "nf4" else 0.05)


def test_quantised_weights_are_fewer_bytes_and_shared_in_one_process(folders: dict[str, ModelConfig]) -> None:
    model = dataclasses.replace(folders["stable_diffusion_3"], quantization="int8")
    learner = LearnerConfig(lora_rank=2, lora_targets=["to_q"])
    one, two = (build_policy(model, learner, seed=0, keep_reference=False) for _ in range(2))
    one.weights.share_fixed(two.weights)
    theirs = {name: value for name, value in two.weights.network.named_parameters() if not value.requires_grad}
    for name, value in one.weights.network.named_parameters():
        assert value.requires_grad or value.data_ptr() == theirs[name].data_ptr(), name


def test_a_quantised_network_takes_adapters_and_no_sums(folders: dict[str, ModelConfig], tmp_path: Path) -> None:
    model = dataclasses.replace(folders["stable_diffusion"], quantization="int8")
    policy: Any = build_policy(model, LearnerConfig(lora_rank=2), seed=0, keep_reference=False)
    with pytest.raises(ValueError, match=r"load the model with model.quantization=null"):
        policy.save_merged(tmp_path, "float32")
    policy.save(tmp_path)
    file = tmp_path / "pytorch_lora_weights.safetensors"
    begun = LearnerConfig(lora_rank=2, init_adapter=str(file))
    again: Any = build_policy(
        dataclasses.replace(model, adapters=[str(file)]), begun, seed=0, keep_reference=True
    )
    assert again.weights.export(0).checksum == policy.weights.export(0).checksum


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["model.quantization=int4"], "model.quantization=int4: must be one of int8, nf4, or null"),
        (["model.quantization=int8", "learner=full"], "model.quantization=int8: needs learner.mode=lora"),
        (["model.quantization=int8", "learner.framework=jax"], "must be null for learner.framework=jax"),
    ],
)
def test_what_does_not_go_with_few_bits_is_refused(words: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        check_bounds(compose(*words, "output_dir=x"))


def test_points_have_no_network_to_quantise() -> None:
    words = ("model.quantization=int8", "learner.mode=lora")
    with pytest.raises(ConfigError, match=r"int8: must be null for model.family=gaussian_mixtures"):
        check_family(compose("experiment=mixtures_small", *words, "output_dir=x"))


def test_a_package_that_is_missing_and_a_device_that_cannot_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ModelConfig(quantization="int8", device="cpu")
    assert quantization_problems(model, "cpu") == []

    def cannot(*_: Any) -> None:
        raise RuntimeError("no kernel")

    monkeypatch.setattr(quantization, "_to_int8", cannot)
    told = "model.quantization=int8: the device cpu does not compute it: no kernel; use null"
    assert quantization_problems(model, "cpu") == [told]
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    with pytest.raises(StartError, match=r"nf4: needs bitsandbytes, .* pip install 'prdp\[bitsandbytes\]'"):
        family_of(model).check(dataclasses.replace(model, quantization="nf4"))
