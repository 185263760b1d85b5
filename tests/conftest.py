"""One thread a process and no network, set before anything imports torch, Ray or wandb."""

import os
import shutil
from pathlib import Path

import pytest

from prdp.cluster.process_threads import apply_threads

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

LONGEST = (
    "cluster/test_chaos.py",
    "test_every_option.py",
    "test_train.py",
    "commands/test_supervise.py",
    "cluster/test_scorer_failures.py",
    "launch/test_ray_job.py",
    "evaluation/",
    "cluster/",
    "learners/",
    "diffusion/",
)
"""Files and folders that take minutes."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files: the last one to be begun may run alone for as long as it takes."""
    here = Path(__file__).parent

    def rank(item: pytest.Item) -> int:
        name = item.path.relative_to(here).as_posix()
        return next((place for place, start in enumerate(LONGEST) if name.startswith(start)), len(LONGEST))

    items.sort(key=rank)


@pytest.fixture(scope="session", autouse=True)
def prompt_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tables of prompts are built in a folder of the tests, also by the processes they start."""
    os.environ["PRDP_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def small_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded pipeline with smaller networks, of a few thousand weights: not to be harmed."""
    import torch
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from prdp.worlds.shapes.tiny_pipeline import build_scheduler, build_tokenizer

    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(block_out_channels=(8,), latent_channels=4, norm_num_groups=4, sample_size=8),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=32,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        ),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=8,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            block_out_channels=(8, 16),
            layers_per_block=1,
            cross_attention_dim=16,
            attention_head_dim=2,
            norm_num_groups=4,
        ),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    folder = tmp_path_factory.mktemp("tiny") / "model"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def model_folder(small_pipeline: Path, tmp_path: Path) -> Path:
    """A copy of the small pipeline, to be harmed."""
    return Path(shutil.copytree(small_pipeline, tmp_path / "model"))


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random pipeline of the embedded layout, but narrow, on disk, loaded the way Stable Diffusion is."""
    import torch

    from prdp.worlds.shapes import tiny_pipeline

    folder = tmp_path_factory.mktemp("pipeline")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"UNET_CHANNELS": (16, 32), "VAE_CHANNELS": (8, 8, 16), "TEXT_WIDTH": 32}.items():
            patch.setattr(tiny_pipeline, name, value)
        torch.manual_seed(0)
        tiny_pipeline.build_pipeline().save_pretrained(folder)
    return folder
