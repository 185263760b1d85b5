"""The switch for a GPU that repeats its bits, and what it does not reach."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from prdp.config import LearnerConfig, ModelConfig
from prdp.configuration.bounds import check_family
from prdp.configuration.typed import typed
from prdp.diffusion import build_policy
from prdp.diffusion.determinism import set_up_arithmetic
from prdp.learners import learner_policy
from prdp.support.errors import ConfigError
from tests.points_run import points_run


@pytest.fixture
def switches(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All as it is before, and put back."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_gpu_computes_float32_and_repeats_its_bits_where_it_is_asked(switches: None, deterministic: bool) -> None:
    set_up_arithmetic(torch.device("cuda", 0), deterministic)
    assert not torch.backends.cudnn.allow_tf32
    assert torch.are_deterministic_algorithms_enabled() is deterministic
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == (":4096:8" if deterministic else None)


def test_a_network_that_processes_hold_together_computes_so_too(switches: None, small_pipeline: Path) -> None:
    """It is loaded on the host, and has a GPU only afterwards."""
    model = ModelConfig(path=str(small_pipeline), device="cuda", deterministic=True)
    policy = learner_policy(model, LearnerConfig(mode="full"), 0, shards=2)
    assert policy.device.type == "cuda"
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.allow_tf32


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
