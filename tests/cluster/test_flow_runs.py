"""Runs of FLUX.1, Stable Diffusion 3.5 and Z-Image by PRDP on the size of the JPEG: inline, and on actors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from narrow_transformers import NARROW, TEXT_TOKENS
from test_xl_runs import learned, run

from prdp.tracking.jsonl import read_metrics

FLOW_SDE = {"kind": "flow_sde", "eta": 0.7, "guidance_scale": 2.0, "deterministic_final_steps": 1}
EULER = {"kind": "euler", "guidance_scale": 1.0, "deterministic_final_steps": 0}


@pytest.fixture(scope="module", params=NARROW)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp(request.param)
    NARROW[request.param]().save_pretrained(folder)
    return {
        "family": request.param, "path": str(folder), "max_sequence_length": TEXT_TOKENS[request.param], "height": 32,
        "width": 32,
    }  # fmt: skip


def test_log_ratios_train_an_adapter(model: dict[str, Any], tmp_path: Path) -> None:
    inline = run(Path(model["path"]), tmp_path / "inline", model=model, sampler=FLOW_SDE)
    start, *epochs = read_metrics(inline)
    assert all(line["ratio_error"] < 1e-5 for line in epochs)
    assert epochs[-1]["logratio"] == 0 and epochs[-1]["grad_norm"] > 0
    assert epochs[-1]["eval/score"] != start["eval/score"]
    assert (inline / "weights" / "pytorch_lora_weights.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["z_image"], indirect=True)
def test_actors_give_the_same_bits(model: dict[str, Any], tmp_path: Path, private_ray: Any) -> None:
    """Of the family with the most unusual conditions, counts of tokens."""
    expected, found = (
        learned(run(Path(model["path"]), tmp_path / kind, model=model, sampler=FLOW_SDE, cluster=cluster))
        for kind, cluster in (("inline", {}), ("ray", {"kind": "ray", "samplers": 1}))
    )
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_denoising_errors_train_all_weights(model: dict[str, Any], tmp_path: Path) -> None:
    folder = run(
        Path(model["path"]),
        tmp_path / "run",
        model=model,
        sampler=EULER,
        objective={"evidence": "denoising", "draws": 2},
        learner={"mode": "full", "learning_rate": 1e-2},
    )
    start, *epochs = read_metrics(folder)
    assert epochs[-1]["grad_norm"] > 0
    assert epochs[-1]["eval/score"] != start["eval/score"]
    assert (folder / "weights" / "model_index.json").is_file()
