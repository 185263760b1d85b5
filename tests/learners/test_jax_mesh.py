"""A learner in JAX on eight devices of a CPU learns as one on one device does, in an eighth of the memory on each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prdp.configuration.typed import typed
from prdp.support.errors import ConfigError
from tests.points_run import points_run

EIGHT = "--xla_force_host_platform_device_count=8"


@pytest.mark.slow
def test_updates_on_eight_devices_are_those_on_one(small_pipeline: Path, tmp_path: Path) -> None:
    out, program = tmp_path / "found.json", Path(__file__).with_name("mesh_updates.py")
    changes = {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {EIGHT}", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, str(program), str(small_pipeline), str(out)],
        env={**os.environ, **changes, "PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(out.read_text())
    refused = found.pop("refused")
    assert refused.startswith("learner.jax_data=3 and learner.jax_fsdp=3: need 9 devices of JAX, and this process has")
    assert list(found) == ["lora 1x1", "lora 2x4"]
    for name, told in found.items():
        alone = found[f"{name.split()[0]} 1x1"]
        for metric in ("loss", "grad_norm"):
            assert told[metric] == pytest.approx(alone[metric], rel=1e-4), (name, metric)
        assert told["apart"] < 1e-5, name
        data, fsdp = map(int, name.split()[1].split("x"))
        assert len(told["held"]) == data * fsdp
        # What no axis of a tensor can be divided for lies on each device as a whole.
        assert max(told["held"]) < 1.15 * told["whole"] / fsdp, name


def test_devices_of_jax_need_jax_in_one_process(tmp_path: Path) -> None:
    shapes = {"family": "stable_diffusion", "path": "shapes"}
    for learner, cluster, says in (
        ({"jax_fsdp": 2}, {}, "learner.jax_fsdp=2: needs learner.framework=jax"),
        ({"jax_data": 4}, {}, "learner.jax_data=4: needs learner.framework=jax"),
        (
            {"framework": "jax", "jax_data": 4},
            {"learners": 2},
            "learner.jax_data=4: needs cluster.learners=1: the devices are those of one process",
        ),
    ):
        with pytest.raises(ConfigError, match=f"^{says}"):
            typed(points_run(tmp_path, model=shapes, learner=learner, cluster=cluster))
