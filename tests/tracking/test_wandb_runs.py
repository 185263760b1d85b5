"""One W&B run per job: the same id, rising steps and one group, over kills, resumes and sweeps."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
from wandb_files import history, started

from prdp.cli import main
from prdp.config import TrainConfig
from prdp.tracking.jsonl import read_metrics
from prdp.tracking.status_file import read_status
from prdp.tracking.wandb_tracker import run_tags, sweep_name

wandb = pytest.importorskip("wandb")

SESSION = """\
import os, signal, sys
from pathlib import Path
import numpy as np
from prdp.config import TrackingConfig
from prdp.tracking.base import build_trackers
from prdp.tracking.jsonl import choose_run_id
run_dir, resumed, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
resumed = None if resumed < 0 else resumed
run_id = choose_run_id(run_dir, resumed)
config = {"objective": {"name": "prdp"}, "prompts": {"train": {"_target_": "prdp.prompts.text_file.TextFilePrompts"}}}
facts = {"reward_identity": {"name": "redness", "version": "1"}}
trackers = build_trackers(TrackingConfig(wandb="offline"), run_dir, config, run_id, resumed, facts)
for epoch in range(resumed + 1 if resumed is not None else 0, last + 1):
    trackers.images("heldout", np.zeros((1, 4, 4, 3), np.uint8), ["a"], epoch)
    trackers.log({"reward/mean": epoch / 8}, epoch)
if sys.argv[4] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
trackers.finish(sys.argv[4])
"""


def session(run_dir: Path, resumed: int, last: int, end: str) -> None:
    """A process that logs epochs up to `last`. W&B's service shares its output, so that it has ended, too, here."""
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    environment |= {name: str(run_dir.parent) for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR")}
    words = [sys.executable, "-c", SESSION, str(run_dir), str(resumed), str(last), end]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == (-9 if end == "killed" else 0), done.stderr


def test_a_killed_run_goes_on_under_its_id_without_gaps_and_no_step_is_used_twice(tmp_path: Path) -> None:
    """Interrupted, resumed from epoch 1, killed, and resumed from epoch 4."""
    run_dir = tmp_path / "sweep" / "0"
    run_dir.mkdir(parents=True)
    (tmp_path / "sweep" / "multirun.yaml").write_text("")
    session(run_dir, -1, 3, "interrupted")
    first_id = read_status(run_dir)["run_id"]
    session(run_dir, 1, 4, "killed")
    session(run_dir, 4, 5, "finished")
    assert read_status(run_dir)["run_id"] == first_id
    assert [line["epoch"] for line in read_metrics(run_dir)] == [0, 1, 2, 3, 4, 5]

    files = sorted((run_dir / "wandb").glob("offline-run-*/*.wandb"))
    assert [file.name for file in files] == [f"run-{first_id}.wandb"] * 3
    runs = [run for file in files if (run := started(file)) is not None]
    assert len(runs) >= 2, "W&B writes a session that ends in order"
    for run in runs:
        assert (run.run_id, run.run_group, run.job_type) == (first_id, f"{tmp_path.name} sweep", "train")
        assert list(run.tags) == ["reward:redness", "prompts:text_file", "objective:prdp"]
    rows = [row for file in files for row in history(file)]
    steps = [row["_step"] for row in rows]
    assert steps == sorted(set(steps)), "each step once, and rising over the sessions"
    curve = [(row["epoch"], row["reward/mean"]) for row in rows if "reward/mean" in row]
    assert set(curve) == {(epoch, epoch / 8) for epoch in range(6)}
    assert [epoch for epoch, _ in curve][:4] == [0, 1, 2, 3] and [epoch for epoch, _ in curve][-2:] == [4, 5]


def test_the_jobs_of_a_sweep_have_one_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str | None] = []
    module = types.ModuleType("prdp.train")

    def train(config: TrainConfig) -> None:
        names.append(sweep_name(Path(config.output_dir)))

    module.main = train  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "prdp.train", module)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "-m", "experiment=shapes_smoke", "seed=0,1", "hydra.sweep.dir=studies/seeds"]) == 0
    assert names == ["studies seeds"] * 2
    assert main(["train", "experiment=shapes_smoke", "output_dir=alone"]) == 0
    assert names[2] is None


def test_tags_name_every_term_and_fit(tmp_path: Path) -> None:
    terms = {"hps": {"name": "hpsv2"}, "clip": {"name": "clipscore"}}
    assert run_tags({"reward_identity": {"name": "weighted_sum", "terms": terms}}) == ["reward:hps", "reward:clip"]
    assert run_tags({"reward": {"_target_": "prdp.rewards.redness.Redness"}}) == ["reward:redness"]
    assert run_tags({}) == []
    (tag,) = run_tags({"objective": {"name": "x" * 100}})
    assert len(tag) == 64
