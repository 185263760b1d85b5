"""Runs of Stable Diffusion XL and 3, of FLUX.1 and Z-Image are found and sampled as those of Stable Diffusion 1 are."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from narrow_transformers import NARROW, TEXT_TOKENS
from narrow_xl import narrow_xl

from prdp.config import LearnerConfig, ModelConfig, SamplerConfig
from prdp.diffusion import build_policy
from prdp.evaluation.loading import build_evaluated_sampler
from prdp.evaluation.models import find_models, model_digest
from prdp.types import PromptBatch, Weights

SAMPLERS = {
    "stable_diffusion_xl": SamplerConfig(steps=4, guidance_scale=1.0),
    **dict.fromkeys(NARROW, SamplerConfig(kind="cps", eta=0.8, steps=4, guidance_scale=1.0)),
}
PROMPT = PromptBatch(0, 0, ("a star",), ({},))


@pytest.fixture(scope="module", params=SAMPLERS)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    folder = tmp_path_factory.mktemp("model")
    NARROW.get(request.param, narrow_xl)().save_pretrained(folder)
    length = TEXT_TOKENS.get(request.param)
    return ModelConfig(
        family=request.param, path=str(folder), max_sequence_length=length, height=32, width=32, device="cpu"
    )


def trained(base: ModelConfig, mode: str) -> Any:
    learner = LearnerConfig(mode=mode, lora_rank=4, lora_targets=["to_q", "to_out.0"])
    policy: Any = build_policy(base, learner, seed=0, keep_reference=False)
    start, rng = policy.weights.export(0).tensors, np.random.default_rng(0)
    moved = {name: (value + 0.1 * rng.normal(size=value.shape)).astype(np.float32) for name, value in start.items()}
    policy.weights.bind(Weights.of(1, moved))
    return policy


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_exported_weights_are_sampled_as_they_were_learned(base: ModelConfig, tmp_path: Path, mode: str) -> None:
    policy = trained(base, mode)
    policy.save(tmp_path / "weights")
    (found,) = find_models([str(tmp_path / "weights")], base)
    assert (found.kind, found.model.family) == ("lora" if mode == "lora" else "pipeline", base.family)
    sampler = build_evaluated_sampler(found, SAMPLERS[base.family], "float32", "cpu", None, kl=False)
    ours: Any = sampler._policy
    conditions, latents = policy.encode(["a star"]), torch.randn(1, *policy.latent_shape)
    with torch.no_grad():
        outputs = [one.output(latents, torch.tensor([0.5]), conditions, 1.0) for one in (policy, ours)]
        start = build_policy(base, LearnerConfig(mode="frozen"), seed=0, keep_reference=False)
        before = start.output(latents, torch.tensor([0.5]), conditions, 1.0)
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
    assert (outputs[0] - before).abs().max() > 1e-3
    assert sampler.sample(PROMPT, 1, 0, trajectory=False).images.shape == (1, 32, 32, 3)


def test_a_hub_repository_is_of_the_family_that_its_index_names(base: ModelConfig, tmp_path: Path) -> None:
    other = ModelConfig(family="gaussian_mixtures", path="gaussian_mixtures")
    with patch("huggingface_hub.try_to_load_from_cache", lambda *_, **__: f"{base.path}/model_index.json"):
        # Whether sizes fit is checked elsewhere: those of a released model are beyond a narrow one.
        with patch("prdp.evaluation.models.family_of"):
            (found,) = find_models(["somebody/model"], other)
        with patch("prdp.evaluation.models.family_on_hub", lambda _: None):
            (unknown,) = find_models(["somebody/model"], base)
    assert (found.model.family, found.model.path) == (base.family, "somebody/model")
    assert unknown.model.family == base.family


def test_sizes_and_tokens_change_the_digest(base: ModelConfig, tmp_path: Path) -> None:
    (found,) = find_models([base.path], base)
    wider = dataclasses.replace(found, model=dataclasses.replace(found.model, width=48))
    assert model_digest(found) != model_digest(wider)
