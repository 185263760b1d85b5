"""ImageReward on small random weights in its own format, against an independent implementation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference_models import PROMPTS, imagereward_raw, imagereward_tensors

from prdp.cli import main
from prdp.config import ModelConfig, SamplerConfig
from prdp.evaluation.loading import build_evaluated_sampler
from prdp.evaluation.models import find_models
from prdp.evaluation.store import read_image
from prdp.rewards.imagereward import ImageReward
from prdp.rewards.pixels import short_side_pixels
from prdp.support.errors import StartError
from prdp.types import PromptBatch

WORDS = 63
NOTHING: list[dict[str, Any]] = [{}] * len(PROMPTS)
IDS = [
    [2, 5, 57, 58, 3],
    [2, 5, 57, 58, 3],
    [2, 61, 8, 45, 37, 49, 3],
    [2, 28, *[54] * 32, 3],
]
"""PROMPTS by hand: [CLS] 'a' 'red' 'cat' [SEP]; 'two' 'd' '##o' '##g' '##s'; 'x' and '##x' until 35 tokens are full."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imagereward")
    torch.save(imagereward_tensors(WORDS), folder / "ImageReward.pt")
    return folder


def test_scores_are_standardised_outputs_of_an_independent_implementation(
    images: np.ndarray, folder: Path, bert_tokenizer: Path
) -> None:
    arguments = {"path": str(folder), "tokenizer": str(bert_tokenizer), "batch_size": 3}
    ImageReward.check(**arguments)
    scores = ImageReward(**arguments, device="cpu").score(images, PROMPTS, NOTHING)
    raw = imagereward_raw(imagereward_tensors(WORDS), short_side_pixels(images, 28), IDS)
    np.testing.assert_allclose(scores, (raw.numpy() - 0.16717362830052426) / 1.0333394966054072, atol=1e-5)
    assert np.ptp(scores) > 0.01


def test_foreign_and_incomplete_checkpoints_are_refused(folder: Path, bert_tokenizer: Path, tmp_path: Path) -> None:
    tensors = imagereward_tensors(WORDS)
    without = {name: value for name, value in tensors.items() if "layer.1.crossattention.self.value" not in name}
    for change, message in [
        (without, r"text_encoder\.\*: .* lacks encoder\.layer\.1\.crossattention\.self\.value\.bias"),
        ({**tensors, "blip.other.weight": torch.zeros(1)}, r"blip\.other\.weight belong to no part of ImageReward"),
        ({**tensors, "mlp.layers.7.bias": torch.zeros(3)}, r"layers\.7\.bias is \[3\] instead of \[1\]"),
        ({"a": torch.zeros(1)}, "no ImageReward checkpoint; its first tensors are a"),
    ]:
        torch.save(change, tmp_path / "ImageReward.pt")
        with pytest.raises(ValueError, match=message):
            ImageReward.check(path=str(tmp_path), tokenizer=str(bert_tokenizer))
    torch.save(imagereward_tensors(40), tmp_path / "ImageReward.pt")
    with pytest.raises(ValueError, match="ids go up to 62, but the model has 40 token embeddings"):
        ImageReward(path=str(tmp_path), tokenizer=str(bert_tokenizer), device="cpu")


def test_a_cascade_asks_its_teacher_by_it(
    folder: Path, bert_tokenizer: Path, small_pipeline: Path, tmp_path: Path
) -> None:
    """From `prdp calibrate` to routed images, and refused with other weights."""
    weights = tmp_path / "ImageReward.pt"
    shutil.copy(folder / "ImageReward.pt", weights)
    given = {"path": str(weights), "tokenizer": str(bert_tokenizer)}
    words = [f"rewards.imagereward.{key}={value}" for key, value in given.items()]
    words += ["models=[student:base,teacher:base]", f"model.path={small_pipeline}", "rewards=[imagereward]", "rate=0.5"]
    words += ["prompts=[shapes.train]", "prompts.shapes_train.size=9", "prompts_per_set=6", "sampler.steps=2"]
    words += ["sampler.guidance_scale=2", "samplers.student.steps=1", "samplers.student.guidance_scale=1"]
    words += ["samplers.student.deterministic_final_steps=0", "strategy=regenerate"]
    words += ["sampler.prompts_per_chunk=6", f"output_dir={tmp_path}/cascade"]
    assert main(["calibrate", *words]) == 0
    [chunk] = (tmp_path / "cascade" / "samples" / "student").glob("*/seed_0/*")
    prompts = json.loads((chunk / "chunk.json").read_text())["prompts"]
    pictures = np.stack([read_image(file) for file in sorted(chunk.glob("*.png"))])
    scores = ImageReward(**given, device="cpu").score(pictures, prompts, [{}] * 6)
    threshold = json.loads((tmp_path / "cascade" / "threshold.json").read_text())
    assert float(threshold["value"]) == pytest.approx(np.sort(scores)[3]) and threshold["realised"] == 0.5
    [model] = find_models([str(tmp_path / "cascade")], ModelConfig(path=str(small_pipeline)))
    sampler = build_evaluated_sampler(model, SamplerConfig(), "float32", "cpu", None, kl=False)
    drawn = sampler.sample(PromptBatch(0, 0, tuple(prompts), ({},) * 6), 1, 0, trajectory=False)
    lowest = np.argsort(scores)[:3]
    assert drawn.network_passes.tolist() == [5.0 if row in lowest else 1.0 for row in range(6)]
    torch.save(imagereward_tensors(WORDS, seed=1), weights)
    with pytest.raises(StartError, match=r"threshold was calibrated with another scorer \("):
        build_evaluated_sampler(model, SamplerConfig(), "float32", "cpu", None, kl=False)
