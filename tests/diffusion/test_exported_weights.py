"""What is exported binds in plain diffusers and in `prdp evaluate`, matrix by matrix, and says so if it does not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from prdp.config import LearnerConfig, ModelConfig
from prdp.diffusion import build_policy
from prdp.diffusion.lora_file import LORA_FILE, check_lora
from prdp.diffusion.pipeline_files import check_network
from prdp.evaluation.loading import apply_lora
from prdp.types import Weights

pytestmark = pytest.mark.slow

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
PROJECTIONS = ["proj_in", "proj_out"]
FEED_FORWARD = ["ff.net.0.proj", "ff.net.2"]
CONVOLUTIONS = ["conv1", "conv2", "conv_in", "conv_out", "conv_shortcut", "conv"]
TIMES = ["time_emb_proj", "linear_1", "linear_2"]
EVERYTHING = ATTENTION + PROJECTIONS + FEED_FORWARD + CONVOLUTIONS + TIMES


def learned(folder: Path, **learner: Any) -> Any:
    """A policy with every learning tensor away from its start."""
    policy = build_policy(ModelConfig(path=str(folder)), LearnerConfig(**learner), seed=0, keep_reference=False)
    rng = np.random.default_rng(0)
    start = policy.weights.export(0).tensors
    tensors = {
        name: (value + 0.05 * rng.normal(size=value.shape)).astype(np.float32) for name, value in start.items()
    }
    policy.weights.bind(Weights.of(1, tensors))
    return policy


@pytest.fixture(scope="module")
def untouched(pipeline_folder: Path) -> Any:
    """The base that LoRA files are loaded into; `base` clears it."""
    model = ModelConfig(path=str(pipeline_folder))
    return build_policy(model, LearnerConfig(mode="frozen"), seed=0, keep_reference=False)


@pytest.fixture
def base(untouched: Any) -> Iterator[Any]:
    yield untouched
    untouched.pipeline.unload_lora_weights()


@torch.no_grad()
def outputs(policy: Any) -> torch.Tensor:
    latents = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    return policy.output(latents, torch.tensor([981, 41]), policy.encode(["a small red circle"] * 2), 1.0)


def matrices(unet: torch.nn.Module) -> int:
    return sum(".lora_A." in name or ".lora_B." in name for name, _ in unet.named_parameters())


@pytest.mark.parametrize(
    ("targets", "alpha"),
    [
        (ATTENTION, 4.0),
        (PROJECTIONS, 4.0),
        (FEED_FORWARD, 1.0),
        (CONVOLUTIONS, 6.0),
        (TIMES, 4.0),
        (ATTENTION + PROJECTIONS, 6.0),
        (EVERYTHING, 6.0),
        (["down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", "mid_block.resnets.0.conv1"], 8.0),
    ],
    ids=lambda value: value if isinstance(value, float) else "+".join(value)[:40],
)
def test_every_combination_of_layers_goes_out_and_comes_back(
    pipeline_folder: Path, tmp_path: Path, base: Any, targets: list[str], alpha: float
) -> None:
    layers = sum(
        isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
        and any(f".{name}".endswith(f".{target}") for target in targets)
        for name, module in base.network.named_modules()
    )
    policy = learned(pipeline_folder, lora_targets=targets, lora_rank=4, lora_alpha=alpha)
    assert len(policy.weights.parameters) == 2 * layers
    policy.save(tmp_path)
    expected = outputs(policy)
    assert not torch.allclose(outputs(base), expected, atol=1e-3)
    base.pipeline.load_lora_weights(tmp_path)
    assert matrices(base.network) == 2 * layers
    torch.testing.assert_close(outputs(base), expected, rtol=0, atol=1e-6)
    base.pipeline.unload_lora_weights()
    apply_lora(base, tmp_path / LORA_FILE)
    assert matrices(base.network) == 2 * layers
    torch.testing.assert_close(outputs(base), expected, rtol=0, atol=1e-6)


def converted(policy: Any, folder: Path) -> Path:
    """A file as diffusers' own conversion names it: attention in one scheme, all other layers in another."""
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=convert_state_dict_to_diffusers(get_peft_model_state_dict(policy.network)),
        unet_lora_adapter_metadata=policy.network.peft_config["default"].to_dict(),
    )
    return folder / LORA_FILE


@pytest.mark.parametrize("targets", [ATTENTION, EVERYTHING], ids=["attention", "everything"])
def test_files_of_earlier_versions_can_be_evaluated(
    pipeline_folder: Path, tmp_path: Path, base: Any, targets: list[str]
) -> None:
    policy = learned(pipeline_folder, lora_targets=targets, lora_rank=4, lora_alpha=6.0)
    apply_lora(base, converted(policy, tmp_path))
    torch.testing.assert_close(outputs(base), outputs(policy), rtol=0, atol=1e-6)


def test_a_file_that_diffusers_does_not_bind_whole_is_refused(pipeline_folder: Path, tmp_path: Path) -> None:
    policy = learned(pipeline_folder, lora_targets=ATTENTION + PROJECTIONS, lora_rank=4, lora_alpha=6.0)
    with pytest.raises(ValueError, match="of the 140 LoRA matrices that were learned diffusers binds 28, 0 of them"):
        check_lora(policy.network, converted(policy, tmp_path / "mixed"), StableDiffusionPipeline, "unet")
    policy.save(tmp_path / "whole")
    state = load_file(tmp_path / "whole" / LORA_FILE)
    name = next(iter(state))
    save_file({**state, name: state[name] + 1e-3}, tmp_path / "changed.safetensors")
    with pytest.raises(ValueError, match="binds 140, 140 of them with another value or scale"):
        # Without its metadata, alpha is lost too.
        check_lora(policy.network, tmp_path / "changed.safetensors", StableDiffusionPipeline, "unet")
    with pytest.raises(ValueError, match="that were not learned"):
        attention = learned(pipeline_folder, lora_targets=ATTENTION, lora_rank=4, lora_alpha=6.0)
        check_lora(attention.network, tmp_path / "whole" / LORA_FILE, StableDiffusionPipeline, "unet")


def test_an_export_reads_back_what_it_wrote(
    pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = learned(pipeline_folder, lora_targets=ATTENTION, lora_rank=4)
    monkeypatch.setattr("peft.utils.get_peft_model_state_dict", half_of(get_peft_model_state_dict))
    with pytest.raises(ValueError, match=r"of the 112 LoRA matrices .* binds 56, 0 of them .*; first: up_blocks"):
        policy.save(tmp_path)


def half_of(function: Any) -> Any:
    def half(unet: Any) -> dict[str, torch.Tensor]:
        state = function(unet)
        return dict(sorted(state.items())[: len(state) // 2])

    return half


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_whole_pipeline_loads_without_a_dtype(pipeline_folder: Path, tmp_path: Path, dtype: str) -> None:
    model = ModelConfig(path=str(pipeline_folder), dtype=dtype)
    policy: Any = build_policy(model, LearnerConfig(mode="full"), seed=0, keep_reference=False)
    policy.save(tmp_path)
    loaded = StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None)
    loaded.set_progress_bar_config(disable=True)
    assert {part.dtype for part in (loaded.unet, loaded.vae, loaded.text_encoder)} == {torch.float32}
    assert np.isfinite(loaded("a circle", num_inference_steps=1, output_type="np").images).all()
    state = loaded.unet.state_dict()
    for name, value in policy.weights.parameters.items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=0)
    name = next(iter(policy.weights.parameters))
    with pytest.raises(ValueError, match=f"0 were not stored, and 1 with another value; first: {name}"):
        check_network(tmp_path / "unet", {**policy.weights.parameters, name: policy.weights.parameters[name] + 1})
    with pytest.raises(ValueError, match="1 were not stored, and 0 with another value; first: stray"):
        check_network(tmp_path / "unet", {**policy.weights.parameters, "stray": torch.zeros(1)})


def test_the_embedded_pipeline_loads_without_a_dtype() -> None:
    from prdp.worlds.shapes.tiny_pipeline import pipeline_folder as embedded

    pipeline = StableDiffusionPipeline.from_pretrained(embedded())
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.text_encoder.dtype == pipeline.unet.dtype == torch.float32
    images = pipeline("a small red circle", num_inference_steps=1, output_type="np").images
    assert images.shape == (1, 32, 32, 3)
