"""Blocks that are compiled compute what they did, and tell what compiling took."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from narrow_xl import narrow_xl

from prdp.config import LearnerConfig, ModelConfig
from prdp.configuration.typed import typed
from prdp.diffusion import build_policy, diffusers_policy
from prdp.diffusion.compiling import compile_blocks, compile_seconds
from prdp.diffusion.precision import repeated_blocks
from prdp.support.errors import ConfigError, StartError
from tests.points_run import points_run


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(3, 3)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return value + self.inner(value).tanh()


class Network(torch.nn.Sequential):
    _repeated_blocks = ("Block",)


def test_compiled_blocks_compute_the_same_and_tell_what_it_took() -> None:
    network = Network(Block(), Block())
    value, results = torch.rand(4, 3), []
    for compiled in (False, True):
        if compiled:
            compile_blocks(network, "aot_eager")
            compile_blocks(network, "aot_eager")  # those that are, stay
            before = compile_seconds()
        network.zero_grad()
        output = network(value)
        output.square().sum().backward()
        results.append([output, *(parameter.grad.clone() for parameter in network.parameters())])
    spent = compile_seconds()
    assert spent > before
    network(value).sum().backward()
    assert compile_seconds() == spent, "both blocks share programs"
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-7)
    assert next(iter(network.state_dict())) == "0.inner.weight"


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_a_policy_compiles_its_network_and_its_reference(
    small_pipeline: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    seen: list[tuple[Any, str]] = []
    monkeypatch.setattr(diffusers_policy, "compile_blocks", lambda *what: seen.append(what))
    model = ModelConfig(path=str(small_pipeline), compile="inductor")
    policy = build_policy(model, LearnerConfig(mode=mode, lora_rank=2), seed=0, keep_reference=True)
    with policy.reference() as network:
        pass
    assert seen == [(policy.weights.network, "inductor"), (network, "inductor")]
    assert (network is policy.weights.network) == (mode == "lora")


@torch.no_grad()
def test_weights_in_half_precision_are_compiled_but_where_they_are_widened(tmp_path: Path) -> None:
    narrow_xl().save_pretrained(tmp_path)
    outputs: dict[str | None, list[torch.Tensor]] = {}
    for backend in (None, "aot_eager"):
        model = ModelConfig(
            family="stable_diffusion_xl", path=str(tmp_path), height=32, width=32, dtype="bfloat16", compile=backend
        )
        policy: Any = build_policy(model, LearnerConfig(lora_rank=2), seed=0, keep_reference=True)
        for name, value in policy.weights.parameters.items():
            if "lora_B" in name:
                value.copy_(0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name))))
        latents = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(1))
        given = latents, torch.full((2,), 500.0), policy.encode(["a small red circle", "two squares"]), 1.0
        found = [policy.output(*given)]
        spent = compile_seconds()
        with policy.float32(), policy.reference() as network:
            found += [policy.output(*given), policy.output(*given, network)]
        assert compile_seconds() == spent, "nothing is compiled for wide weights"
        found.append(policy.output(*given))
        assert torch.equal(found[0], found[3])
        compiled = {block._compiled_call_impl is not None for block in repeated_blocks(policy.network)}
        assert compiled == {backend is not None}
        outputs[backend] = found
    torch.testing.assert_close(outputs["aot_eager"][1:3], outputs[None][1:3], rtol=0, atol=0)
    torch.testing.assert_close(outputs["aot_eager"][0], outputs[None][0], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": {"quantization": "int8"}}, "must be null for model.quantization=int8"),
        ({"learner": {"framework": "jax"}}, "must be null for learner.framework=jax"),
        ({"cluster": {"learners": 2, "fsdp_size": 2}}, "must be null for cluster.fsdp_size=2"),
    ],
)
def test_what_is_not_compiled_is_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    model = {"path": "shapes", "family": "stable_diffusion", "compile": "inductor", **changes.pop("model", {})}
    with pytest.raises(ConfigError, match=rf"model\.compile=inductor: {says}"):
        typed(points_run(tmp_path, model=model, **changes))


def test_a_missing_compiler_is_told_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(StartError, match=r"needs a compiler for C\+\+ on a CPU"):
        compile_blocks(torch.nn.Linear(2, 2), "inductor")
