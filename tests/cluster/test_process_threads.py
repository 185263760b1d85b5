"""The planned threads reach the numeric libraries."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from prdp.cluster import threads
from prdp.cluster.process_threads import apply_threads, plan_threads
from prdp.config import ClusterConfig, TrainConfig

ROOT = Path(__file__).parents[2]


def test_plan_for_the_whole_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda: 16)
    assert plan_threads(TrainConfig(cluster=ClusterConfig(threads=3))) == 3
    assert plan_threads(TrainConfig(cluster=ClusterConfig(threads=0))) == 16
    ray = ClusterConfig(threads=0, kind="ray", samplers=3, reward_actors=1)
    assert plan_threads(TrainConfig(cluster=ray)) == 4


def test_apply_sets_the_environment_and_tells_what_it_replaces(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    names = threads.thread_environment(1)
    for name in names:
        monkeypatch.setenv(name, "7")
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr("prdp.cluster.process_threads._applied", None)
    apply_threads(2)
    assert {os.environ[name] for name in names} == {"2"}
    assert "OMP_NUM_THREADS=7 of the environment is not used: this process takes 2 CPU threads" in caplog.text
    caplog.clear()
    apply_threads(3)  # in place of our own
    apply_threads(3)
    assert caplog.text == ""
    with pytest.raises(ValueError, match="at least 1"):
        apply_threads(0)


def test_torch_gets_what_was_applied_before_and_after_its_import() -> None:
    script = (
        "from prdp.cluster.process_threads import apply_threads; apply_threads(1); import torch\n"
        "first = torch.get_num_threads(); apply_threads(2); print(first, torch.get_num_threads())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["1", "2"]
