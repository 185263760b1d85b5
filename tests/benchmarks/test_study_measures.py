"""What a study records of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import study_measures
from composing import compose

from prdp.configuration.typed import config_yaml
from prdp.diffusion import build_policy
from prdp.types import Weights

SMALL = ("experiment=shapes_smoke", "sampler.steps=4", "sampler.guidance_scale=1", "learner.lora_rank=2")


def drift_of_run(folder: Path, moved_by: float, *overrides: str) -> float:
    """Of a run whose adapter was moved at random."""
    config = compose(*SMALL, *overrides, f"output_dir={folder}")
    policy: Any = build_policy(config.model, config.learner, seed=config.seed, keep_reference=False)
    start, rng = policy.weights.export(0).tensors, np.random.default_rng(0)
    moved = {
        name: (value + moved_by * rng.normal(size=value.shape)).astype(np.float32) for name, value in start.items()
    }
    policy.weights.bind(Weights.of(1, moved))
    folder.mkdir()
    policy.save(folder / "weights")
    (folder / "config.yaml").write_text(config_yaml(config))
    return study_measures.drift(folder, config)


def test_drift_is_the_kl_of_the_chain_whatever_the_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_measures, "DRIFT_PROMPTS", 3)
    assert drift_of_run(tmp_path / "start", 0.0) == 0.0
    near, far = (drift_of_run(tmp_path / f"moved_{by}", by) for by in (0.02, 0.05))
    assert 0.0 < near < far
    denoising = drift_of_run(tmp_path / "denoising", 0.05, "objective=prdp_denoising")
    assert denoising == pytest.approx(far, rel=1e-6), "of one sampler, whatever evidence was learned from"
    without_noise = drift_of_run(tmp_path / "ode", 0.05, "objective=prdp_denoising", "sampler.eta=0")
    assert without_noise == pytest.approx(far, rel=1e-6), "measured where its steps draw noise"
