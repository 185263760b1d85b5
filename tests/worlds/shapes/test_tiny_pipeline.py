"""The embedded pipeline: its tokenizer, its size on disk, its components, and what its pretraining sees."""

from __future__ import annotations

import json

import numpy as np
import pytest

from prdp.worlds.shapes.grammar import VOCABULARY, caption, parse
from prdp.worlds.shapes.pretrain_unet import noisy_caption
from prdp.worlds.shapes.scene import random_scene
from prdp.worlds.shapes.split import is_held_out, scene_at
from prdp.worlds.shapes.tiny_pipeline import MAX_TOKENS, build_tokenizer, pipeline_folder


def test_every_word_of_the_grammar_is_one_token() -> None:
    tokenizer = build_tokenizer()
    for word in VOCABULARY:
        assert tokenizer.tokenize(word) == [f"{word}</w>"]
    rng = np.random.default_rng(0)
    longest = max((caption(random_scene(rng, 3)) for _ in range(200)), key=lambda text: len(text.split()))
    ids = tokenizer(longest).input_ids
    assert len(ids) == len(longest.split()) + 2 <= MAX_TOKENS
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == longest


def test_the_shipped_pipeline_is_a_small_stable_diffusion_in_half_precision() -> None:
    folder = pipeline_folder()
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    classes = {name: index[name][1] for name in ("unet", "vae", "text_encoder", "tokenizer", "scheduler")}
    assert classes == {
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "tokenizer": "CLIPTokenizer",
        "scheduler": "DDIMScheduler",
    }
    files = list(folder.glob("**/*.safetensors"))
    assert len(files) == 3
    assert sum(file.stat().st_size for file in files) <= 12e6
    from safetensors import safe_open

    for file in files:
        with safe_open(file, framework="np") as tensors:
            names = tensors.keys()
            assert {str(tensors.get_slice(name).get_dtype()) for name in names} <= {"F16", "I64"}


def test_noisy_captions_are_wrong_at_about_the_asked_rate() -> None:
    rng = np.random.default_rng(1)
    scenes = [random_scene(rng) for _ in range(400)]
    assert all(noisy_caption(scene, rng, 0.0) == caption(scene) for scene in scenes)
    backgrounds = [parse(noisy_caption(scene, rng, 0.3)).background != scene.background for scene in scenes]
    assert np.mean(backgrounds) == pytest.approx(0.3, abs=0.07)


def test_pretraining_never_sees_a_held_out_scene() -> None:
    assert not any(is_held_out(scene_at("train", index, seed=0)) for index in range(2000))
