"""Prompts with what Unicode calls line ends, or that read as numbers, through everything that a run does."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prdp.checkpoints.log_archive import evaluation_names, pack_evaluation, pack_logs, restore_evaluation, restore_logs
from prdp.cli import main as prdp
from prdp.commands.status import told
from prdp.configuration.typed import typed
from prdp.evaluation.spreadsheet import from_cell
from prdp.prompts.usage import check_usage
from prdp.tracking.evaluations import load_evaluation
from prdp.tracking.status_file import load_status
from prdp.train import main

HELD_OUT = [
    "a fox\u2028in snow", "a bear\x85at night", "a map\x0con a table", "two\x0bcats", "a\x1cdog\x1din\x1ea box",
    "a\u2029star", "NaN", "Infinity", "-Infinity",
]  # fmt: skip
TRAIN = [f"{text} again" for text in HELD_OUT]


@pytest.fixture(scope="module")
def run(small_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was stopped after an epoch and went on, with its report."""
    folder = tmp_path_factory.mktemp("odd")
    for name, texts in (("train", TRAIN), ("heldout", HELD_OUT)):
        lines = (json.dumps({"prompt": text, "category": text}, ensure_ascii=False) + "\n" for text in texts)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    sources = {
        name: {
            "_target_": "prdp.prompts.any_file.open_prompts",
            "path": str(folder / f"{name}.jsonl"),
            "category_column": "category",
        }
        for name in ("train", "heldout")
    }
    evaluation = {"every": 1, "prompts": 9, "images_per_prompt": 1, "final_prompts": 9, "grid_prompts": 9}

    def session(epochs: int, **checkpoint: Any) -> None:
        made = {
            "epochs": epochs,
            "prompts_per_epoch": 9,
            "images_per_prompt": 2,
            "output_dir": str(folder / "run"),
            "model": {"path": str(small_pipeline)},
            "sampler": {"steps": 2, "guidance_scale": 1.0, "prompts_per_chunk": 9},
            "reward": {"_target_": "prdp.rewards.redness.Redness"},
            "prompts": sources,
            "learner": {"lora_rank": 2},
            "evaluation": evaluation,
            "checkpoint": {"every": 1, **checkpoint},
        }
        main(typed(made))

    session(1)
    session(2, resume="auto")
    return folder / "run"


def test_the_run_its_evaluations_and_its_report(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for epoch in (0, 1, 2):
        loaded = load_evaluation(run, epoch)
        assert sorted(loaded.prompts) == sorted(HELD_OUT) and loaded.categories == loaded.prompts
        assert np.isfinite(loaded.scores).all()
        assert set(loaded.summary()["categories"]) == set(HELD_OUT)
    (run / "report.html").unlink()
    assert prdp(["report", str(run)]) == 0
    assert "a fox" in (run / "report.html").read_text(encoding="utf-8")
    assert prdp(["status", str(run)]) == 0 and "epoch 2 of 2" in capsys.readouterr().out
    assert told({**load_status(run), "folder": str(run), "alive": False}, time.time())
    assert prdp(["prompts", "used", str(run)]) == 0
    assert check_usage(run).counts.tolist() == [2] * 9


def test_its_logs_travel(run: Path, tmp_path: Path) -> None:
    restore_logs(tmp_path, pack_logs(run), 2)
    for name in evaluation_names(run):
        restore_evaluation(tmp_path, name, pack_evaluation(run, name))
    assert load_evaluation(tmp_path, 2).prompts == load_evaluation(run, 2).prompts
    assert check_usage(tmp_path).epochs == 2


def test_models_are_judged_on_them(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"models=[{run}]", f"trust=[{run}]", f"output_dir={tmp_path / 'compare'}", "images_per_prompt=1"]
    assert prdp(["evaluate", *words]) == 0
    with (tmp_path / "compare" / "images.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    base = [row["prompt"] for row in rows if row["model"] == rows[0]["model"]]
    assert sorted(map(from_cell, base)) == sorted(HELD_OUT)
