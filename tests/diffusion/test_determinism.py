"""The switch for a GPU that repeats its bits, and what it does not reach."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from prdp.config import LearnerConfig, ModelConfig
from prdp.configuration.bounds import check_family
from prdp.configuration.typed import typed
from prdp.diffusion import build_policy
from prdp.diffusion.determinism import use_deterministic_kernels
from prdp.support.errors import ConfigError
from tests.points_run import points_run


def test_deterministic_kernels_are_for_the_whole_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    try:
        use_deterministic_kernels()
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_cpu_needs_no_switch(small_pipeline: Path) -> None:
    model = ModelConfig(path=str(small_pipeline), device="cpu", deterministic=True)
    build_policy(model, LearnerConfig(lora_rank=2), seed=0, keep_reference=False)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"learner": {"framework": "jax"}, "model": {"path": "shapes", "family": "stable_diffusion"}}, "framework=jax"),
        ({}, "model.family=gaussian_mixtures"),
    ],
)
def test_where_it_would_do_nothing_it_is_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    given = points_run(tmp_path, **changes)
    given["model"]["deterministic"] = True
    with pytest.raises(ConfigError, match=rf"model\.deterministic=[Tt]rue: must be [Ff]alse for .*{says}"):
        check_family(typed(given))
