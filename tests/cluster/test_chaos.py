"""A short chaos: a node, a learner, a sampler and a reward actor are killed while a run trains on them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray")

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes as Linux shows them")
def test_a_run_survives_every_kind_of_death_with_the_same_weights():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, str(ROOT / "benchmarks" / "chaos.py"), "--points", "--epochs", "40"]
    command += ["--every", "3", "--kills", "4"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=540)
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads(done.stdout)
    assert sum(result["kills"].values()) >= 3
    assert result["same_weights"]
    assert result["each_prompt_once"]
    assert result["each_epoch_logged_once"]
