"""Stored half precision is widened a block at a time, and computes as a network that is float32 throughout."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from narrow_transformers import NARROW, TEXT_TOKENS
from narrow_xl import narrow_xl

from prdp.config import LearnerConfig, ModelConfig
from prdp.diffusion import build_policy
from prdp.diffusion.precision import repeated_blocks, upcast

BUILD: dict[str, Callable[..., Any]] = {**NARROW, "stable_diffusion_xl": narrow_xl}
BLOCKS = {
    "stable_diffusion_xl": {"BasicTransformerBlock", "ResnetBlock2D"},
    "stable_diffusion_3": {"JointTransformerBlock"},
    "flux": {"FluxSingleTransformerBlock"},
    "z_image": {"ZImageTransformerBlock"},
}


@pytest.mark.parametrize("family", BUILD)
@torch.no_grad()
def test_blocks_are_wide_only_while_they_compute(family: str, tmp_path: Any) -> None:
    BUILD[family]().save_pretrained(tmp_path)
    model = ModelConfig(
        family=family, path=str(tmp_path), height=32, width=32, max_sequence_length=TEXT_TOKENS.get(family),
        dtype="bfloat16", device="cpu",
    )  # fmt: skip
    policy: Any = build_policy(model, LearnerConfig(lora_rank=2), seed=0, keep_reference=True)
    for name, value in policy.network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.1)
    conditions = policy.encode(["a small red circle", "two large blue squares"])
    latents, times = torch.randn(2, *policy.latent_shape), torch.full((2,), 0.5)
    whole = copy.deepcopy(policy.network).float()
    blocks = repeated_blocks(policy.network)
    assert {type(block).__name__ for block in blocks} == BLOCKS[family]
    wide: list[int] = []

    def count(*_: Any) -> None:
        wide.append(sum(all(value.dtype == torch.float32 for value in block.parameters()) for block in blocks))

    with policy.float32():
        handles = [block.register_forward_hook(count) for block in blocks]
        found = policy.output(latents, times, conditions, 3.0)
        torch.testing.assert_close(found, policy.output(latents, times, conditions, 3.0, whole), rtol=0, atol=0)
        with policy.reference() as network:
            base = policy.output(latents, times, conditions, 3.0, network)
    for handle in handles:
        handle.remove()
    assert not torch.equal(base, found)
    assert wide and set(wide) == {0}, "the hook runs when the block is done, and narrow again"
    assert not any(block._forward_pre_hooks or block._forward_hooks for block in blocks)
    assert {value.dtype for name, value in policy.network.named_parameters() if "lora" not in name} == {torch.bfloat16}


def test_a_block_that_fails_is_narrow_again() -> None:
    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert self.weight.dtype == torch.float32
            return x * self.weight

    class Network(torch.nn.Module):
        _repeated_blocks = ("Block",)

        def __init__(self) -> None:
            super().__init__()
            self.blocks = torch.nn.ModuleList([Block(), Block()])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                x = block(x)
            return x

    network = Network()
    with upcast(network), pytest.raises(RuntimeError, match="must match"), torch.no_grad():
        network(torch.ones(3))
    assert all(value.dtype == torch.bfloat16 for value in network.parameters())
    with upcast(network), upcast(network), torch.no_grad():
        assert torch.equal(network(torch.full((2,), 3.0)), torch.full((2,), 3.0))
    assert all(value.dtype == torch.bfloat16 for value in network.parameters())
