"""`benchmarks/gpu_runs.py` on a CPU: the same program on smaller runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "benchmarks"))

import gpu_runs
from gpu_runs import Outcome, Whole, apart, told

SMOKE = "experiment=shapes_smoke reward=redness epochs=1 cluster.threads=1"


@pytest.mark.slow
def test_equal_runs_and_a_refused_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = {
        "one": Whole(SMOKE),
        "two": Whole(f"{SMOKE} cluster.colocate=true", like="one", bits=True),
        "refused": Whole(f"{SMOKE} sampler.steps=0"),
    }
    monkeypatch.setattr(gpu_runs, "RUNS", runs)
    out = tmp_path / "report.md"
    assert gpu_runs.main(["--runs", *runs, "--device", "cpu", "--together", "2", "--out", str(out)]) == 1
    rows = {line.split("|")[1].strip(): line for line in out.read_text().splitlines() if line.startswith("| ")}
    assert "| the bits of *one* |" in rows["two"]
    assert "**FAILED**: ended with 2: prdp train: sampler.steps" in rows["refused"]
    assert "FAILED" not in rows["one"]


def test_what_differs_is_told_and_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*losses: float, log: str = "") -> Outcome:
        rows = [{"epoch": float(row), "loss": loss, "time/epoch": loss} for row, loss in enumerate(losses, 1)]
        return Outcome(rows, log, 3.0, 1.0)

    assert apart(run(1.0, 4.0).rows, run(1.5, 2.0).rows) == (0.5, "loss, epoch 2")
    assert apart(run(1.0, float("nan")).rows, run(1.0, 2.0).rows)[1] == "loss, epoch 2"
    whole = {
        "one": Whole(""),
        "bits": Whole("", like="one", bits=True),
        "near": Whole("", like="one", within=0.3),
        "told": Whole("", like="one"),
        "halved": Whole("", memory=2.0),
    }
    monkeypatch.setattr(gpu_runs, "RUNS", whole)
    found = {"one": run(1.0), **{name: run(1.25) for name in ("bits", "near", "told", "halved")}}
    rights = {name: told(name, found)[1] for name in found}
    assert rights == {"one": True, "bits": False, "near": True, "told": True, "halved": False}
    assert "within 2.0e-01 of *one* (loss, epoch 1)" in told("near", found)[0]
    found["halved"] = run(1.0, log="memory ran out at 64 rows\nmemory ran out at 32 rows\n")
    row, right = told("halved", found)
    assert right
    assert "2 times memory ran out" in row
