"""`benchmarks/gpu.py` on networks that a CPU can take: the same program, the same report."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import weakref
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

STEP = "a step, evidence in bfloat16"
BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    import gpu

    return gpu


def measured(gpu: ModuleType, out: Path, model: str, *parts: str) -> list[dict[str, Any]]:
    words = ["--narrow", "--device", "cpu", "--repeats", "1", "--out", str(out), "--parts", *parts]
    gpu.measure(model, gpu.parsed(words))
    return [json.loads(line) for line in Path(f"{out}.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["sd15", "sdxl", "sd35_medium", "flux_dev"])
def test_the_numbers_of_every_layout_are_right(gpu: ModuleType, model: str, tmp_path: Path) -> None:
    rows = measured(gpu, tmp_path / "report", model, "numbers", "precision")
    assert [row for row in rows if "failed" in row] == []
    checks = {row["what"]: row for row in rows if "bound" in row}
    assert len(checks) == 6
    assert all(row["right"] for row in checks.values()), checks
    assert checks["gradient against autodiff of one graph, largest difference"]["value"] < 1e-4


@pytest.mark.slow
def test_what_is_timed(gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, backend: None)  # which takes long
    parts = ("speed", "protocol", "microbatches", "attention", "repeated", "compile", "evidence")
    rows = measured(gpu, tmp_path / "report", "sd35_medium", *parts)
    assert [row for row in rows if "failed" in row] == []
    values = {row["what"]: row["value"] for row in rows if "what" in row}
    learned = "images learned from, evidence in tf32"
    for what in ("pictures drawn", learned, "microbatch of 2", "torch's own choice", STEP):
        assert values[what] > 0
    assert values["samples per GPU-hour, evidence in bfloat16"] == pytest.approx(8 / values[STEP] * 3600)
    page = gpu.page(rows, {"torch": "2"})
    assert "| protocol | samples per GPU-hour, evidence in bfloat16 |" in page
    assert "0 parts could not be measured" in page


def test_a_part_that_fails_or_takes_too_long_is_a_line(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gpu_parts
    from gpu_bench import Bench as bench_of_gpu
    from gpu_bench import Measure, Measures

    kept: list[weakref.ref[Any]] = []

    def broken(bench: object) -> Measures:
        large = torch.zeros(1)
        kept.append(weakref.ref(large))
        yield Measure("before", 1.0)
        raise torch.OutOfMemoryError("of the card\nand more")

    def endless(bench: object) -> Measures:
        while True:
            time.sleep(0.001)
        yield

    def wrong(bench: object) -> Measures:
        yield Measure("error", 2.0, bound=1.0)

    held = []
    freed = bench_of_gpu.free

    def free(self: object) -> None:
        held.append(any(one() is not None for one in kept))
        freed(self)

    monkeypatch.setattr(bench_of_gpu, "free", free)
    named = {"broken": (broken, 9.0), "endless": (endless, 0.05), "wrong": (wrong, 9.0)}
    monkeypatch.setattr(gpu_parts, "PARTS", named)
    rows = measured(gpu, tmp_path / "report", "sd15", *named)
    page = gpu.page(rows, {})
    assert "* not measured: sd15, broken: OutOfMemoryError: of the card\n" in page
    assert "* not measured: sd15, endless: TimeoutError: not done after 0 s\n" in page
    assert "| broken | before | 1  |" in page
    assert "* **WRONG**: sd15, wrong: error" in page
    assert held == [False] * 3, "an error lets go of what it held before memory is given back"


def test_time_that_is_left_over_is_for_the_models_that_follow(gpu: ModuleType) -> None:
    models = list(gpu.MODELS)
    assert gpu.limit(models, 500.0) == pytest.approx(500.0 * gpu.SHARES["sd15"])
    assert gpu.limit(models[-1:], 400.0) == 400.0


def test_parts_that_want_another_environment_have_a_process_of_their_own(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first process breaks after one part, and another takes those that are left."""
    import gpu_parts

    lines, seen = tmp_path / "report.jsonl", []
    lines.write_text("")

    def process(command: list[str], env: dict[str, str], **_: Any) -> subprocess.CompletedProcess[str]:
        parts = command[command.index("--parts") + 1 :]
        seen.append((parts, env.get("CUDNN_CONV_WSCAP_DBG")))
        breaks = len(seen) == 1
        gpu.append(lines, [{"model": "sd15", "part": part} for part in (parts[:1] if breaks else parts)])
        return subprocess.CompletedProcess(command, gpu.BROKEN if breaks else 0, stderr="")

    monkeypatch.setattr(gpu.subprocess, "run", process)
    gpu.start("sd15", gpu.parsed(["--parts", "numbers", "speed", "workspace"]), 60.0, lines)
    assert seen == [(["numbers", "speed"], None), (["speed"], None), (["workspace"], "1024")]
    assert "workspace" in gpu_parts.parts_of("sd15")
    assert "workspace" not in gpu_parts.parts_of("sdxl")


@pytest.mark.slow
def test_the_command_imports_neither_ray_nor_hydra_nor_wandb(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "report"
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--narrow", "--device", "cpu", "--models", "flux_dev"]
    done = subprocess.run([*command, "--parts", "memory", "--out", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = out.with_suffix(".md").read_text()
    assert "1 of 1 checks hold; 0 parts could not be measured." in page
    assert "| memory | planned, learning |" in page
