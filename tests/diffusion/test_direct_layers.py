"""Adapted layers and attention that skip the dispatch of peft and diffusers compute what these compute."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from narrow_transformers import NARROW, TEXT_TOKENS
from narrow_xl import narrow_xl
from peft.tuners.lora.layer import LoraLayer
from torch.utils._python_dispatch import TorchDispatchMode

from prdp.config import LearnerConfig, ModelConfig, SamplerConfig
from prdp.diffusion import build_policy
from prdp.diffusion.adapter_files import AdaptedLayer, Adapter
from prdp.diffusion.adapters import activate, put_adapter
from prdp.diffusion.direct_layers import direct
from prdp.diffusion.precision import conversions_kept
from prdp.diffusion.sampler import Sampler
from prdp.types import PromptBatch

BUILD: dict[str, Callable[..., Any]] = {**NARROW, "stable_diffusion_xl": narrow_xl}
CONVOLUTIONS = {"stable_diffusion_xl": ["to_q", "to_v", "conv1"]}
PROMPTS = ["a small red circle", "two large blue squares"]
SECOND = "second"


def policy_of(family: str, folder: Path, dtype: str) -> Any:
    """A policy with an adapter that learns and a frozen one, both away from zero."""
    BUILD[family]().save_pretrained(folder)
    model = ModelConfig(
        family=family, path=str(folder), height=32, width=32, max_sequence_length=TEXT_TOKENS.get(family),
        dtype=dtype, device="cpu",
    )  # fmt: skip
    learner = LearnerConfig(lora_rank=2, **({"lora_targets": more} if (more := CONVOLUTIONS.get(family)) else {}))
    policy: Any = build_policy(model, learner, seed=0, keep_reference=True)
    layers = {name: module for name, module in policy.network.named_modules() if isinstance(module, LoraLayer)}
    parts = {name: _second(module, number) for number, (name, module) in enumerate(list(layers.items())[::2])}
    put_adapter(policy.network, SECOND, Adapter(Path("second"), parts, 0.7))
    activate(policy.network, ["default", SECOND], list(policy.weights.parameters))
    for name, value in policy.weights.parameters.items():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.1)
    return policy


def _second(module: Any, seed: int) -> AdaptedLayer:
    generator = torch.Generator().manual_seed(seed)
    shapes = (part["default"].weight.shape for part in (module.lora_A, module.lora_B))
    down, up = (0.1 * torch.randn(shape, generator=generator) for shape in shapes)
    return AdaptedLayer(down, up, 1.3)


def as_peft(network: Any) -> Any:
    """A copy whose layers have the classes that peft and diffusers gave them."""
    plain = copy.deepcopy(network)
    kinds: Counter[str] = Counter()
    for module in plain.modules():
        if type(module).__name__.startswith("Direct"):
            kinds[type(module).__name__] += 1
            module.__class__ = type(module).__bases__[1]
    assert any("Attention" in kind for kind in kinds) and kinds["DirectLinear"], kinds
    return plain


def results(policy: Any, network: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The output of a network, and the gradient of its adapters."""
    generator = torch.Generator().manual_seed(3)
    conditions = policy.encode(PROMPTS)
    latents, times = torch.randn(2, *policy.latent_shape, generator=generator), torch.tensor([0.9, 0.3])
    learning = [value for value in network.parameters() if value.requires_grad]
    output = policy.output(latents, times, conditions, 3.0, network)
    with torch.no_grad():
        assert torch.equal(policy.output(latents, times, conditions, 3.0, network), output)
    return output.detach(), list(torch.autograd.grad(output.square().mean(), learning))


@pytest.mark.parametrize("family", BUILD)
def test_float32_is_that_of_peft_to_the_bit(family: str, tmp_path: Path) -> None:
    policy = policy_of(family, tmp_path, "float32")
    plain = as_peft(policy.network)
    found, expected = results(policy, policy.network), results(policy, plain)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    with policy.reference() as network:
        base = results_without_gradient(policy, network)
    assert (base - found[0]).abs().max() > 1e-3
    for module in plain.modules():
        if isinstance(module, LoraLayer):
            module.enable_adapters(False)
    torch.testing.assert_close(base, results_without_gradient(policy, plain), rtol=0, atol=0)


def results_without_gradient(policy: Any, network: Any) -> torch.Tensor:
    with torch.no_grad():
        latents = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(3))
        return policy.output(latents, torch.tensor([0.9, 0.3]), policy.encode(PROMPTS), 3.0, network)


@pytest.mark.parametrize("family", BUILD)
def test_bfloat16_is_no_farther_from_float32_than_that_of_peft(family: str, tmp_path: Path) -> None:
    policy = policy_of(family, tmp_path, "bfloat16")
    plain = as_peft(policy.network)
    found, gradients = results(policy, policy.network)
    of_peft, gradients_of_peft = results(policy, plain)
    with policy.float32():
        exact, exact_gradients = results(policy, copy.deepcopy(policy.network).float())

    def away(tensors: list[torch.Tensor], true: list[torch.Tensor]) -> float:
        difference = sum((one - other).double().square().sum() for one, other in zip(tensors, true, strict=True))
        return float((difference / sum(one.double().square().sum() for one in true)).sqrt())

    assert 0 < away([found], [exact]) < 1.2 * away([of_peft], [exact])
    assert 0 < away(gradients, exact_gradients) < 1.2 * away(gradients_of_peft, exact_gradients)


class Conversions(TorchDispatchMode):
    """Counts conversions of adapters' matrices."""

    def __init__(self, shapes: set[torch.Size]) -> None:
        super().__init__()
        self.shapes, self.count = shapes, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function is torch.ops.aten._to_copy.default and args[0].shape in self.shapes
        return function(*args, **(kwargs or {}))


def test_drawing_converts_adapters_once(tmp_path: Path) -> None:
    policy = policy_of("stable_diffusion_3", tmp_path, "bfloat16")
    activate(policy.network, ["default"], list(policy.weights.parameters))
    learning = list(policy.weights.parameters.values())

    def conversions(steps: int) -> int:
        sampler = Sampler(policy, SamplerConfig(kind="euler", eta=0.0, steps=steps, guidance_scale=3.0))
        with Conversions({value.shape for value in learning}) as seen:
            sampler.sample(PromptBatch(0, 0, ("a small red circle",), ({},)), 2, seed=0, trajectory=False)
        return seen.count

    assert conversions(4) == conversions(2) >= len(learning)


def test_conversions_are_made_anew_outside_of_the_context() -> None:
    layer = torch.nn.Linear(4, 4)
    x = torch.ones(1, 4)

    def computed() -> torch.Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return layer(x).clone()

    with conversions_kept(torch.device("cpu")):
        before = computed()
        assert torch.equal(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias)), "in float32"
    with torch.no_grad():
        layer.weight.add_(1.0)
    assert not torch.equal(computed(), before)


def test_layers_are_pickled_and_those_with_more_than_two_matrices_stay_as_they_are() -> None:
    from peft import LoraConfig, inject_adapter_in_model

    def adapted(*further: dict[str, Any], **settings: Any) -> Any:
        network = torch.nn.Sequential(torch.nn.Linear(4, 4))
        for number, each in enumerate((settings, *further)):
            config = LoraConfig(target_modules=["0"], r=2, **each)
            inject_adapter_in_model(config, network, f"further_{number}" if number else "default")
            direct(network)
        return network[0]

    plain, x = adapted(), torch.randn(3, 4)
    assert type(plain).__name__ == "DirectLinear"
    torch.nn.init.normal_(plain.lora_B["default"].weight)
    read = pickle.loads(pickle.dumps(plain))
    assert type(read) is type(plain) and torch.equal(read(x), plain(x))
    for settings in ({"lora_dropout": 0.5}, {"lora_bias": True}):
        assert type(adapted(**settings)).__name__ == "Linear"
        assert type(adapted(settings)).__name__ == "Linear"
    assert type(adapted({}, {})).__name__ == "DirectLinear"
    rotated = adapted(use_dora=True)
    assert type(rotated).__name__ == "DirectLinear"
    expected = copy.deepcopy(rotated)
    expected.__class__ = type(rotated).__bases__[1]
    torch.nn.init.normal_(rotated.lora_B["default"].weight)
    torch.nn.init.normal_(expected.lora_B["default"].weight)
    expected.load_state_dict(rotated.state_dict())
    assert torch.equal(rotated(x), expected(x))


def test_what_a_processor_does_not_take_is_left_to_diffusers(tmp_path: Path) -> None:
    policy = policy_of("stable_diffusion_xl", tmp_path, "float32")
    attention = next(one for one in policy.network.modules() if type(one).__name__ == "DirectAttention")
    x = torch.randn(1, 4, attention.to_q.in_features)
    assert torch.equal(attention(x, nobody_takes_this=1), attention(x))
