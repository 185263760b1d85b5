"""One thread a process and no network, set before anything imports torch, Ray or wandb."""

import json
import os
from pathlib import Path

import pytest

from prdp.threads import apply_threads

apply_threads(1)
os.environ.update(
    HF_HUB_OFFLINE="1",
    RAY_AUTH_MODE="disabled",
    RAY_USAGE_STATS_ENABLED="0",
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    WANDB_MODE="disabled",
    WANDB_SILENT="true",
    # Tests run each compiled function a few times: compiling fast counts, running fast does not.
    XLA_FLAGS="--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
)


@pytest.fixture(scope="session", autouse=True)
def prompt_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tables of prompts are built in a folder of the tests, also by the processes they start."""
    os.environ["PRDP_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A folder with the files of a Stable Diffusion pipeline, whole but with next to nothing in them."""
    import numpy as np
    from safetensors.numpy import save_file

    folder = tmp_path / "model"
    parts = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
    for part in parts:
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text("{}")
    for part in parts[:3]:
        save_file({"weight": np.zeros(100, np.float32)}, folder / part / "model.safetensors")
    index = {"_class_name": "StableDiffusionPipeline", **{part: ["library", "Class"] for part in parts}}
    (folder / "model_index.json").write_text(json.dumps({**index, "safety_checker": [None, None]}))
    return folder


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random pipeline of the embedded layout on disk, loaded the way Stable Diffusion is."""
    import torch

    from prdp.shapes.tiny_pipeline import build_pipeline

    folder = tmp_path_factory.mktemp("pipeline")
    torch.manual_seed(0)
    build_pipeline().save_pretrained(folder)
    return folder
