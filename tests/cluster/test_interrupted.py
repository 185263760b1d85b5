"""Ctrl-C again and again under Ray: finished epochs are kept, no process is left, and nobody sees a traceback."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("ray")

from prdp.checkpoints.checkpoint import find_latest
from prdp.cluster.ray_session import _family

WORDS = (
    "train experiment=mixtures_small epochs=500 prompts_per_epoch=2 images_per_prompt=2 sampler.steps=2 cluster=ray "
    "cluster.samplers=1 evaluation.every=0 evaluation.final_prompts=2 checkpoint.every=500 output_dir=run"
)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes as Linux shows them")
def test_an_impatient_user_leaves_no_process_and_loses_no_epoch(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); from prdp.cli import main; "
    )
    run = subprocess.Popen(
        [sys.executable, "-c", f"{program}sys.exit(main())", *WORDS.split()],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert run.stdout is not None
    said = ""
    for line in run.stdout:
        said += line
        if line.startswith("epoch ") and "2/500" in line:
            break
    family = _family({run.pid}) - {run.pid}
    assert len(family) > 4, said
    while run.poll() is None:
        os.killpg(run.pid, signal.SIGINT)
        select.select([], [], [], 0.3)
    with run:
        said += run.stdout.read()
    assert run.returncode == 130, said
    assert "Traceback" not in said and "is stopping, and keeps what is finished" in said
    checkpoint = find_latest(tmp_path / "run")
    assert checkpoint is not None and int(checkpoint.name.removeprefix("epoch_")) >= 2
    end = time.monotonic() + 60
    while (left := {pid for pid in family if _lives(pid)}) and time.monotonic() < end:
        select.select([], [], [], 0.1)
    assert not left


def _lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
