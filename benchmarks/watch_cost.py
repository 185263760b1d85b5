"""What `prdp watch` costs: CPU seconds of its looks at a long run, and of drawing its charts.

python benchmarks/watch_cost.py            # 10,000 epochs, an evaluation of 128 prompts every ten
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from prdp.configuration.secret_values import without_secrets
from prdp.reports.report_sections import TRAINING
from prdp.reports.watch.watch_charts import charts
from prdp.reports.watch.watched_run import WatchedRun
from prdp.tracking.evaluations import FOLDER, save_evaluation
from prdp.tracking.jsonl import METRICS_FILE
from prdp.types import PromptBatch

NAMES = (
    *(name for _, _, metrics in TRAINING for name, _ in metrics),
    *(f"time/{stage}" for stage in ("epoch", "sample", "score", "learn", "publish")),
    *(f"images_per_second/{stage}" for stage in ("epoch", "sample", "score", "learn")),
)
PROMPTS, IMAGES = 128, 2


def make_run(folder: Path, epochs: int, every: int) -> None:
    """A log of random numbers, and copies of one evaluation."""
    with (folder / METRICS_FILE).open("w") as file:
        file.writelines(line(epoch) for epoch in range(1, epochs + 1))
    rng = np.random.default_rng(0)
    prompts = PromptBatch(0, 0, tuple(f"prompt {n}" for n in range(PROMPTS)), ({},) * PROMPTS)
    scores, names = rng.random(PROMPTS * IMAGES), ("count", "color", "shape", "size")
    pictures = np.zeros((8, 16, 16, 3), np.uint8)
    save_evaluation(folder, 0, prompts, IMAGES, scores, {name: rng.random(len(scores)) for name in names}, pictures)
    for epoch in range(every, epochs + 1, every):
        shutil.copytree(folder / FOLDER / "epoch_00000", folder / FOLDER / f"epoch_{epoch:05d}")


def line(epoch: int) -> str:
    values = dict(zip(NAMES, np.random.default_rng(epoch).random(len(NAMES)), strict=True))
    return json.dumps({"epoch": epoch, "wall_seconds": 5.0 * epoch, **values}) + "\n"


def measure(name: str, action: Callable[[], object]) -> None:
    start = time.process_time()
    action()
    print(f"{name:<34} {time.process_time() - start:8.3f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10_000)
    parser.add_argument("--every", type=int, default=10, help="epochs between evaluations")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_run(folder, options.epochs, options.every)
        run = WatchedRun(folder, without_secrets)
        now = time.time()
        print(f"a log of {(folder / METRICS_FILE).stat().st_size / 1e6:.1f} MB; CPU seconds:")
        measure("first look: log, an evaluation", lambda: run.poll(now, 0.0))
        measure("all other evaluations", lambda: run.poll(now, 1e9))
        measure("first charts", lambda: charts({"run": run}, more=False))
        measure("a look where nothing is new", lambda: run.poll(now))
        with (folder / METRICS_FILE).open("a") as file:
            file.write(line(options.epochs + 1))
        measure("a look at a new epoch", lambda: run.poll(now))
        measure("charts of a new epoch", lambda: charts({"run": run}, more=False))


if __name__ == "__main__":
    main()
