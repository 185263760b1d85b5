"""Launchers and sweepers of Hydra's ecosystem run sweeps, and are given each run's score on held-out prompts."""

from __future__ import annotations

from pathlib import Path

import pytest

from prdp.cli import main
from prdp.support.plain_yaml import load_yaml
from prdp.tracking.jsonl import read_metrics
from prdp.worlds.mixtures.prompts import GaussianMixturePrompts

SMALL = [
    *("train", "-m", "experiment=mixtures_small", "epochs=1", "prompts_per_epoch=2", "evaluation.every=0"),
    *("evaluation.prompts=4", "evaluation.final_prompts=4", "tracking=silent", "cluster.threads=1"),
]


def score(folder: Path) -> float:
    return [row["eval/score"] for row in read_metrics(folder) if "eval/score" in row][-1]


def sources(folder: Path) -> set[str]:
    """The prompt files of a sweep's two jobs, '' for the built-in set."""
    configs = [load_yaml(folder / job / "config.yaml") for job in "01"]
    return {config["prompts"]["train"].get("path", "") for config in configs}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, split in (("mine.txt", "train"), ("judged.txt", "heldout")):
        prompts = GaussianMixturePrompts(split, size=8)
        (tmp_path / name).write_text("\n".join(prompts[i][0] for i in range(8)))


def test_jobs_run_beside_each_other(tmp_path: Path) -> None:
    """With prompts of one's own in one of them, and built-in ones in the other."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    prompts = "prompts=mine.txt:judged.txt,gaussian_mixtures_small"
    words = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", prompts, "hydra.sweep.dir=beside"]
    assert main([*SMALL, *words]) == 0
    assert main([*SMALL, prompts, "hydra.sweep.dir=after"]) == 0
    for job in "01":
        assert score(tmp_path / "beside" / job) == score(tmp_path / "after" / job)
    assert sources(tmp_path / "beside") == {"mine.txt", ""}


def test_submitit_runs_a_job_as_a_process_of_its_own(tmp_path: Path) -> None:
    """As its launcher for Slurm does, without Slurm."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    words = ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=9", "prompts=mine.txt:judged.txt"]
    assert main([*SMALL, *words, "hydra.sweep.dir=submitted"]) == 0
    assert score(tmp_path / "submitted" / "0") < 0
    assert list((tmp_path / "submitted" / ".submitit").glob("*/*_result.pkl"))


def test_optuna_chooses_by_the_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    words = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=1", "hydra.sweep.dir=chosen"]
    words += ["hydra.sweeper.direction=maximize", "learner.learning_rate=tag(log,interval(1e-4,1e-1))"]
    words += ["prompts=choice(mine.txt:judged.txt,gaussian_mixtures_small)", "hydra.sweeper.sampler.seed=0"]
    assert main([*SMALL, *words]) == 0
    assert "job 2: learner.learning_rate=" in capsys.readouterr().out
    assert sources(tmp_path / "chosen") == {"mine.txt", ""}
    scores = [score(tmp_path / "chosen" / job) for job in "01"]
    found = load_yaml(tmp_path / "chosen" / "optimization_results.yaml")
    assert found["best_value"] == pytest.approx(max(scores), rel=1e-12) and scores[0] != scores[1]


def test_a_mistake_is_told_before_optuna_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    words = ["hydra/sweeper=optuna", "hydra.sweep.dir=none", "learner.learning_rate=interval(-2,-1)"]
    assert main([*SMALL, *words]) == 2
    assert "learner.learning_rate" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
