"""A random pipeline of the embedded layout on disk, loaded the way Stable Diffusion is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from prdp.shapes.tiny_pipeline import build_pipeline

    folder = tmp_path_factory.mktemp("pipeline")
    torch.manual_seed(0)
    build_pipeline().save_pretrained(folder)
    return folder
