"""The JAX UNet against diffusers' own on the same tensors."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig

from prdp.diffusion.jax_unet import UNet, check_adapters

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "as v1": {
        "block_out_channels": (8, 16, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 4,
    },
    "as v2": {
        "block_out_channels": (8, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": [2, 4],
        "use_linear_projection": True,
        # Not as v2 has them, to compile one network less: what comes of the timestep meets nothing else of a layout.
        "flip_sin_to_cos": False,
        "freq_shift": 1,
    },
}


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Three latents, not square, three timesteps and text states."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(3, 4, 8, 16, generator=generator)
    return latents, torch.tensor([1, 480, 999]), torch.randn(3, 5, 12, generator=generator)


@torch.no_grad()
def of_diffusers(network: UNet2DConditionModel) -> np.ndarray:
    latents, timesteps, states = inputs()
    return np.asarray(network(latents, timesteps, encoder_hidden_states=states).sample)


def of_jax(network: UNet2DConditionModel, **settings: Any) -> np.ndarray:
    latents, timesteps, states = inputs()
    tensors = {name: jnp.asarray(value.detach().numpy()) for name, value in network.named_parameters()}
    unet = jax.jit(UNet(dict(network.config), **settings).__call__)
    return np.asarray(unet(tensors, *(jnp.asarray(array.numpy()) for array in (latents, timesteps, states))))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_output_equals_diffusers(layout: str) -> None:
    torch.manual_seed(0)
    network = UNet2DConditionModel(**{**SMALL, **LAYOUTS[layout]}).eval()
    got = of_jax(network)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, of_diffusers(network), atol=2e-5)


EVERY_LAYER = (
    *("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "time_emb_proj", "conv1"),
    *("conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "linear_1", "linear_2"),
    *("conv_in", "conv_out"),
)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_output_equals_diffusers_with_lora(layout: str) -> None:
    torch.manual_seed(0)
    network = UNet2DConditionModel(**{**SMALL, **LAYOUTS[layout]}).eval()
    plain = of_diffusers(network)
    layers = [name for name, part in network.named_modules() if isinstance(part, torch.nn.Linear | torch.nn.Conv2d)]
    assert all(name.endswith(EVERY_LAYER) for name in layers)
    # Small enough that sums of many adapters stay in the range that float32 compares well in.
    network.add_adapter(LoraConfig(r=2, lora_alpha=0.6, target_modules=list(EVERY_LAYER), init_lora_weights=False))
    expected, got = of_diffusers(network), of_jax(network, lora_scale=0.3)
    assert np.abs(expected - plain).max() > 0.01, "the adapter must matter for this test to say anything"
    np.testing.assert_allclose(got, expected, atol=2e-5)
    check_adapters(name for name, _ in network.named_parameters())


def test_unknown_architectures_and_adapters_are_refused_by_name() -> None:
    config = {**SMALL, **LAYOUTS["as v1"]}
    with pytest.raises(ValueError, match="addition_embed_type='text_time'"):
        UNet({**config, "addition_embed_type": "text_time"})
    with pytest.raises(ValueError, match="down_block_types='AttnDownBlock2D'"):
        UNet({**config, "down_block_types": ("AttnDownBlock2D",)})
    with pytest.raises(ValueError, match=r"conv1\.lora_A\.style\.weight"):
        check_adapters(["a.conv1.lora_A.style.weight"])
