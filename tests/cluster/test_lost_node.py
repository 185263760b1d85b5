"""The learner's own Ray node dies: Ray ends the learner, somebody speaks for it, and a new start goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ray")

from prdp.checkpoints.checkpoint import load_checkpoint
from prdp.cli import main
from prdp.tracking.jsonl import read_metrics
from prdp.tracking.status_file import read_status

REWARD = """\
import os, signal
from pathlib import Path
def red(images, prompts, metadata):
    calls = Path(os.environ["CALLS"])
    with calls.open("a") as file:
        file.write("x")
    # An actor's parent is the raylet of its node.
    if calls.stat().st_size == 3 and Path(f"/proc/{os.getppid()}/comm").read_text() == "raylet\\n":
        os.kill(os.getppid(), signal.SIGKILL)
    return images[..., 0].mean((1, 2)) / 255
"""


@pytest.mark.skipif(not Path("/proc/self/comm").exists(), reason="finds the raylet as Linux shows it")
def test_a_run_outlives_its_raylet_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is killed in the second epoch: the reward is called once before the first one and once in each.

    The status that is left is what the supervisor knows the case by.
    """
    (tmp_path / "killing_raylet.py").write_text(REWARD)
    monkeypatch.chdir(tmp_path)
    words = ["train", "experiment=mixtures_small", "reward=callable", "reward.path=killing_raylet.red"]
    words += ["epochs=2", "prompts_per_epoch=2", "images_per_prompt=2", "sampler.steps=2", "checkpoint.every=1"]
    words += ["~reward.kl_weight", "evaluation.every=0", "evaluation.final_prompts=2", "tracking=silent"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"CALLS": str(tmp_path / "lost-calls"), "RAY_agent_register_timeout_ms": "300000"}
    command = [sys.executable, "-m", "prdp", *words, "output_dir=lost", "cluster=ray", "cluster.samplers=1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=540)
    assert done.returncode == 1, done.stderr
    assert "prdp train: the process was ended without a word: its Ray node, or the head, is lost" in done.stderr
    assert f"checkpoint.resume=auto output_dir={tmp_path}/lost" in done.stderr
    status = read_status(tmp_path / "lost")
    assert (status["status"], status["epoch"]) == ("running", 1)

    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    assert main([*words, "output_dir=lost", "checkpoint.resume=auto"]) == 0
    assert main([*words, "output_dir=straight"]) == 0
    lost, straight = (
        load_checkpoint(tmp_path / run / "checkpoints/epoch_00002").tensors for run in ("lost", "straight")
    )
    assert lost.keys() == straight.keys()
    for name, value in straight.items():
        np.testing.assert_array_equal(lost[name], value, err_msg=name)
    assert [row["epoch"] for row in read_metrics(tmp_path / "lost")] == [0, 1, 2]
