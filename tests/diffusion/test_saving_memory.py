"""Keys that save memory change no result, or as little as is said."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from narrow_transformers import NARROW, TEXT_TOKENS
from narrow_xl import narrow_xl

from prdp.config import LearnerConfig, ModelConfig
from prdp.diffusion import build_policy, family_of
from prdp.diffusion.dry_run import DryPolicy
from prdp.diffusion.pipeline_checks import empty_network
from prdp.diffusion.pipeline_loading import placed
from prdp.support.errors import StartError
from prdp.support.microbatches import MemoryShortError

BUILD: dict[str, Callable[..., Any]] = {**NARROW, "stable_diffusion_xl": narrow_xl}
PROMPTS = ["a small red circle", "two large blue squares"]


@pytest.fixture(scope="module", params=BUILD)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    folder, family = tmp_path_factory.mktemp(request.param), request.param
    BUILD[family]().save_pretrained(folder)
    return ModelConfig(
        family=family, path=str(folder), height=32, width=32, max_sequence_length=TEXT_TOKENS.get(family), device="cpu"
    )


def built(model: ModelConfig, **learner: Any) -> Any:
    return build_policy(model, LearnerConfig(lora_rank=2, **learner), seed=0, keep_reference=False)


def test_pictures_and_gradients_are_the_same(model: ModelConfig) -> None:
    plain = built(model)
    saving = dataclasses.replace(model, vae_slicing=True, vae_tiling=True, offload_encoders=True, offload_vae=True)
    other = built(saving, gradient_checkpointing=True)
    latents = torch.randn(2, *plain.latent_shape)
    np.testing.assert_array_equal(other.decode(latents), plain.decode(latents))
    gradients = []
    for policy in (plain, other):
        conditions = policy.encode(PROMPTS)
        policy.output(latents, torch.full((2,), 0.5), conditions, 1.0).square().sum().backward()
        gradients.append({name: value.grad for name, value in policy.weights.parameters.items()})
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value, msg=name, rtol=1e-5, atol=1e-7)
    assert any(value.abs().max() > 0 for value in gradients[0].values())
    # Everything that a condition is made of is declared, by which a plan knows the size of a pass.
    fields = plain.encode(PROMPTS).fields
    assert family_of(model).condition_shapes(model) == {name: tuple(value.shape[1:]) for name, value in fields.items()}  # type: ignore[attr-defined]


def test_tiles_of_a_large_picture_are_those_of_diffusers(tmp_path: Path) -> None:
    """Larger than the VAE's own 32 pixels."""
    narrow_xl().save_pretrained(tmp_path)
    large = ModelConfig(family="stable_diffusion_xl", path=str(tmp_path), height=48, width=48, device="cpu")
    whole, tiled = built(large), built(dataclasses.replace(large, vae_tiling=True))
    latents = torch.randn(1, *whole.latent_shape)
    found, plain = tiled.decode(latents), whole.decode(latents)
    assert not np.array_equal(found, plain)
    whole.pipeline.vae.enable_tiling()
    np.testing.assert_array_equal(found, whole.decode(latents))


def test_an_attention_backend_is_taken_or_refused_by_its_key(model: ModelConfig) -> None:
    named = dataclasses.replace(model, attention_backend="_native_math")
    if model.family not in ("flux", "z_image"):
        with pytest.raises(StartError, match=f"must be null for model.family={model.family}"):
            family_of(named).check(named)
        return
    family_of(named).check(named)
    other, plain = built(named), built(model)
    active, _ = _AttentionBackendRegistry.get_active_backend()
    assert active != named.attention_backend, "the backend of one network is not the process's"
    latents, times = torch.randn(2, *plain.latent_shape), torch.full((2,), 0.5)
    found, expected = (one.output(latents, times, one.encode(PROMPTS), 1.0) for one in (other, plain))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    for name in ("flex", "_native_efficient"):
        with pytest.raises(StartError, match=f"attention_backend={name}: needs a CUDA device, and the model is on cpu"):
            family_of(model).check(dataclasses.replace(model, attention_backend=name))
    kind: Any = family_of(model)
    network = empty_network(Path(model.path), kind.FORMAT)
    of_gpu = dataclasses.replace(model, attention_backend="flex", device="cuda")
    learner = LearnerConfig(lora_rank=2, lora_targets=["to_q"])
    assert DryPolicy(kind, of_gpu, learner, network, kind.condition_shapes(model)).with_gradient(1) > 0
    with pytest.raises(StartError, match="needs xformers"):
        family_of(model).check(dataclasses.replace(model, attention_backend="xformers"))


def test_a_device_without_memory_for_the_model_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full GPU refuses by either of two errors, at the first tensor."""

    class Full(torch.nn.Module):
        def to(self, *arguments: Any, **keywords: Any) -> Any:
            raise RuntimeError("CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation'")

    class Pipeline:
        components: ClassVar[dict[str, Any]] = {"tokenizer": None, "unet": Full()}

    with pytest.raises(MemoryShortError, match=r"^model\.device=cpu: no memory .* the model's unet: CUDA error: out"):
        placed(Pipeline(), ModelConfig(family="stable_diffusion", path="x", device="cpu"))
