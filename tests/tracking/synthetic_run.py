"""A run folder as training would leave it, made from random numbers in a fraction of a second."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from prdp.tracking.evaluations import save_evaluation
from prdp.tracking.jsonl import JsonlTracker
from prdp.types import PromptBatch, UInt8

COLORS = ("red", "green", "blue", "yellow")
SUBS = ("presence", "count", "color", "relation")
CONFIG = """\
seed: 0
epochs: {epochs}
prompts_per_epoch: 16
images_per_prompt: 8
updates_per_epoch: 1
model:
  path: shapes
reward:
  _target_: prdp.worlds.shapes.reward.ShapesJudge
sampler:
  steps: 8
  guidance_scale: 3.0
objective:
  name: prdp
  beta: 3.0e-05
  note: <b>angle & bracket</b> https://example.org
"""


def prompt_batch(count: int) -> PromptBatch:
    texts = tuple(f"a {COLORS[i % 4]} disc, number {i} <&>" for i in range(count))
    return PromptBatch(0, 0, texts, tuple({"category": "odd" if i % 2 else "even"} for i in range(count)))


def disc_images(count: int, size: int = 16, quality: float = 0.5) -> UInt8:
    """uint8 [count, size, size, 3]: a disc on a grey ground whose noise falls with quality."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    disc = (x**2 + y**2 < (size / 3) ** 2)[None, :, :, None]
    colors = np.array([(220, 40, 40), (40, 180, 60), (40, 70, 220), (240, 220, 40)])
    ink = colors[np.arange(count) // 2 % 4][:, None, None, :]
    noise = rng.normal(0, 120 * (1 - quality), size=(count, size, size, 3))
    return np.clip(np.where(disc, ink, 200) + noise, 0, 255).astype(np.uint8)


def add_evaluation(
    run_dir: Path, epoch: int, gain: float, prompts: int = 12, grid: int = 4, size: int = 16
) -> dict[str, float]:
    """Scores rise by `gain` for the same prompts; 'relation' applies to every other prompt only and stays put."""
    rng = np.random.default_rng(7)
    per_prompt = 2
    base = np.repeat(rng.uniform(0.3, 0.6, size=prompts), per_prompt)
    wobble = np.random.default_rng(epoch).normal(0, 0.02, size=len(base))
    subs = {name: np.clip(base + gain * (i + 1) / 2 + wobble, 0, 1) for i, name in enumerate(SUBS[:3])}
    subs["relation"] = np.where(np.arange(len(base)) // per_prompt % 2, base, np.nan)
    images = disc_images(grid * per_prompt, size, quality=min(1.0, 0.4 + gain))
    return save_evaluation(
        run_dir, epoch, prompt_batch(prompts), per_prompt, np.clip(base + gain + wobble, 0, 1), subs, images
    )


def train_metrics(epoch: int, total: int = 20) -> dict[str, float]:
    rng = np.random.default_rng(1000 + epoch)
    rise = epoch / max(total, 1)
    return {
        "reward/mean": 0.45 + 0.2 * rise + rng.normal(0, 0.01),
        "reward/std": 0.2,
        "reward/group_std": 0.12 - 0.02 * rise,
        "reward/color": 0.5 + 0.3 * rise,
        "loss": 0.02 * np.exp(-2 * rise) + 1e-4 * rng.random(),
        "logratio": 1e-5 * rise,
        "logratio_ref": 4e-5 * rise,
        "prediction_size": 0.3 * rise,
        "approx_kl": 2e-6 * rise,
        "clipfrac": 0.1 * rise,
        "grad_norm": 0.5 + 0.1 * rng.random(),
        "learning_rate": 1e-3 * min(1, (epoch + 1) / 5),
        "ratio_error": 1e-6,
        "time/sample": 2.0,
        "time/score": 0.1,
        "time/learn": 3.0,
        "time/publish": 0.05,
        "time/epoch": 5.5,
        "images_per_second/sample": 64.0,
        "images_per_second/learn": 42.0,
        "images_per_second/epoch": 23.0,
        "groups_tied": float(epoch % 3),
    }


def make_run(
    run_dir: Path,
    epochs: int = 20,
    done: int | None = None,
    evaluations: Sequence[tuple[int, float]] = ((0, 0.0), (10, 0.1), (20, 0.2)),
    status: str | None = "finished",
    size: int = 16,
) -> Path:
    """A run of `epochs` of which `done` are trained; (epoch, gain) for each evaluation; status None: killed."""
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(CONFIG.format(epochs=epochs))
    tracker = JsonlTracker(run_dir, "abc")
    done = epochs if done is None else done
    scores = {epoch: add_evaluation(run_dir, epoch, gain, size=size) for epoch, gain in evaluations if epoch <= done}
    for epoch in range(done + 1):
        metrics = train_metrics(epoch, epochs) if epoch else {}
        if epoch in scores:
            metrics |= {**scores[epoch], "time/evaluate": 4.0}
        tracker.log(metrics, epoch)
    if status is not None:
        tracker.finish(status)
    return run_dir


def strict_lines(path: Path) -> list[dict[str, object]]:
    """Lines of a file as strict JSON: NaN and infinities are an error."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not strict JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]
