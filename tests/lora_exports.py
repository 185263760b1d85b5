"""LoRAs of small networks: written, and computed by diffusers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from prdp.config import LearnerConfig, ModelConfig, SamplerConfig
from prdp.diffusion import build_policy
from prdp.diffusion.adapter_tensors import LORA_FILE
from prdp.types import Weights

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
LEARNER = LearnerConfig(lora_rank=2, lora_alpha=3.0, lora_targets=["to_q", "conv1"])
SAMPLER = SamplerConfig(steps=4, guidance_scale=2.0)


def moved(weights: Weights, seed: int = 0) -> Weights:
    rng = np.random.default_rng(seed)
    tensors = weights.tensors
    return Weights.of(1, {k: (v + 0.2 * rng.normal(size=v.shape)).astype(np.float32) for k, v in tensors.items()})


def policy_of(model: ModelConfig, learner: LearnerConfig = LEARNER, *, keep: bool = True) -> Any:
    return build_policy(model, learner, seed=0, keep_reference=keep)


def exported(model: ModelConfig, folder: Path, seed: int = 0, **learner: Any) -> Path:
    """A file of diffusers with factors away from zero."""
    policy = policy_of(model, LearnerConfig(**learner), keep=False)
    policy.weights.bind(moved(policy.weights.export(0), seed))
    policy.save(folder)
    return folder / LORA_FILE


def kohya(file: Path, folder: Path, alpha: Callable[[str], float]) -> Path:
    """A file of diffusers under the names of kohya's trainer."""
    found: dict[str, torch.Tensor] = {}
    for name, value in load_file(file).items():
        layer, _, part = name.removeprefix("unet.").partition(".lora_")
        key = f"lora_unet_{layer.replace('.', '_')}"
        found[f"{key}.lora_{'down' if part.startswith('A') else 'up'}.weight"] = value
        found[f"{key}.alpha"] = torch.tensor(alpha(layer))
    save_file(found, folder / "kohya.safetensors")
    return folder / "kohya.safetensors"


@torch.no_grad()
def output(network: Any, model: ModelConfig | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    if model is not None and model.family == "stable_diffusion_3":
        latents, states = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 5, 192, generator=generator)
        pooled = torch.randn(2, network.config.pooled_projection_dim, generator=generator)
        times = torch.tensor([900.0, 30.0])
        return network(latents, states, pooled, times, return_dict=False)[0]
    latents, states = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 5, 16, generator=generator)
    return network(latents, torch.tensor([900, 30]), states, return_dict=False)[0]


def diffusers_output(folder: Path, files: list[Path], weights: list[float]) -> torch.Tensor:
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    names = [f"a{number}" for number in range(len(files))]
    for file, name in zip(files, names, strict=True):
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=name)
    pipeline.set_adapters(names, weights)
    return output(pipeline.unet)
