"""Runs of Stable Diffusion XL by PRDP on the size of the JPEG: in one process, and on actors with the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from narrow_xl import narrow_xl

from prdp.checkpoints.checkpoint import load_checkpoint
from prdp.configuration.typed import typed
from prdp.tracking.jsonl import read_metrics
from prdp.train import main

PROMPTS = "prdp.worlds.shapes.prompts.ShapesPrompts"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdxl")
    narrow_xl().save_pretrained(folder)
    return folder


def run(path: Path, folder: Path, **changes: Any) -> Path:
    """Two epochs of eight images, or what is changed of it."""
    config: dict[str, Any] = {
        "seed": 3,
        "epochs": 2,
        "prompts_per_epoch": 2,
        "images_per_prompt": 4,
        "updates_per_epoch": 1,
        "output_dir": str(folder),
        "model": {"family": "stable_diffusion_xl", "path": str(path), "device": "cpu"},
        "sampler": {"steps": 3, "guidance_scale": 2.0, "prompts_per_chunk": 1, "deterministic_final_steps": 1},
        "reward": {"_target_": "prdp.rewards.compressibility.Compressibility"},
        "prompts": {
            "train": {"_target_": PROMPTS, "split": "train", "size": 4},
            "heldout": {"_target_": PROMPTS, "split": "heldout", "size": 2},
        },
        "learner": {"lora_rank": 4, "learning_rate": 3e-2, "ema_decay": 0.0},
        "objective": {"name": "prdp", "beta": 1e-3},
        "evaluation": {"every": 0, "prompts": 2, "images_per_prompt": 2, "final_prompts": 2, "grid_prompts": 1},
        "tracking": {"console": False, "report": False},
        "checkpoint": {"every": 2},
    }
    for key, value in changes.items():
        config[key] = {**config.get(key, {}), **value} if isinstance(value, dict) else value
    return main(typed(config))


def learned(folder: Path) -> dict[str, np.ndarray]:
    tensors = load_checkpoint(folder / "checkpoints" / "epoch_00002").tensors
    return {name: value for name, value in tensors.items() if name.startswith("weights/")}


@pytest.mark.slow
def test_samplers_and_a_divided_learner_that_take_turns_on_ray_end_with_the_same_bits(
    model: Path, tmp_path: Path, private_ray: Any
) -> None:
    """Two of each; their networks, text encoders, VAE and moments wait on the host by turns."""
    settings: dict[str, Any] = {
        "learner": {"mode": "full", "learning_rate": 1e-3, "microbatch": 4, "ema_decay": 0.5},
        "objective": {"evidence": "denoising", "draws": 2},
    }
    cluster = {"kind": "ray", "colocate": True, "samplers": 2, "learners": 2, "fsdp_size": 2}
    apart = run(model, tmp_path / "apart", **settings)
    turns = run(model, tmp_path / "turns", **settings, cluster=cluster)
    expected, found = learned(apart), learned(turns)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    scores = [[line["eval/score"] for line in read_metrics(one) if "eval/score" in line] for one in (apart, turns)]
    assert scores[0] == scores[1] and len(scores[0]) == 2


def test_log_ratios_train_adapters_and_actors_and_two_learners_give_the_same_bits(
    model: Path, tmp_path: Path, private_ray: Any
) -> None:
    both = {"text_encoders": True, "lora_rank": 4, "learning_rate": 3e-2, "ema_decay": 0.0}
    inline = run(model, tmp_path / "inline", learner=both)
    start, *epochs = read_metrics(inline)
    assert all(line["ratio_error"] < 1e-5 for line in epochs)
    assert epochs[-1]["logratio"] == 0 and epochs[-1]["grad_norm"] > 0
    assert epochs[-1]["eval/score"] != start["eval/score"]
    assert (inline / "weights" / "pytorch_lora_weights.safetensors").is_file()
    assert "StableDiffusionXLPipeline.from_pretrained" in (inline / "weights" / "README.md").read_text()
    expected = learned(inline)
    moved = [name for name, value in expected.items() if "text_encoder" in name and "lora_B" in name and value.any()]
    assert moved, "text encoders have learned"
    many = {"kind": "ray", "samplers": 1, "learners": 2}
    found = learned(run(model, tmp_path / "ray", learner=both, cluster=many))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_denoising_errors_train_all_weights(model: Path, tmp_path: Path) -> None:
    folder = run(
        model,
        tmp_path / "run",
        sampler={"eta": 0.0, "deterministic_final_steps": 0},
        objective={"evidence": "denoising", "draws": 2},
        learner={"mode": "full", "learning_rate": 1e-3},
    )
    start, *epochs = read_metrics(folder)
    assert epochs[-1]["grad_norm"] > 0
    assert epochs[-1]["eval/score"] != start["eval/score"]
    assert (folder / "weights" / "text_encoder_2" / "model.safetensors").is_file()
