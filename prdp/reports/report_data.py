"""What the report knows about a run, gathered from the run folder alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prdp.reports.charts import Series
from prdp.support.plain_yaml import load_yaml
from prdp.tracking.evaluations import Evaluation, common_images, image_keys, list_evaluations, load_evaluation
from prdp.tracking.jsonl import METRICS_FILE, read_metrics
from prdp.tracking.statistics import half_width_of_groups, mean_interval, paired_difference_interval
from prdp.tracking.status_file import read_status
from prdp.types import Float64, Int64

Interval = tuple[float, float, float]
STAGES = ("sample", "score", "learn", "publish", "evaluate")


class NotARunError(ValueError):
    """The folder holds no run of prdp."""


@dataclass(frozen=True)
class Change:
    """One quantity before and after training over the same images, each as (mean, low, high)."""

    name: str
    before: Interval
    after: Interval
    difference: Interval
    images: int

    @property
    def sign(self) -> int:
        """+1 or -1 when the difference's interval leaves out zero, else 0."""
        _, low, high = self.difference
        return 1 if low > 0 else -1 if high < 0 else 0


@dataclass(frozen=True)
class Timing:
    """One stage's time over the run; images_per_second is the mean over epochs, NaN where it was not logged."""

    stage: str
    seconds: float
    epochs: int
    images_per_second: float
    share: float


@dataclass(frozen=True)
class RunData:
    """A run folder, read.

    Attributes:
        run_dir: the folder.
        config: composed configuration as plain containers, empty without config.yaml; `config_text` is the file.
        metrics: name -> (epochs, values), by ascending epoch; of several values of an epoch the last one counts.
        wall_seconds: time at work over all sessions.
        last_epoch: highest epoch with a logged line, None without any.
        evaluations: all of them, by ascending epoch.
        status: content of status.json.
    """

    run_dir: Path
    config: Mapping[str, Any]
    config_text: str
    metrics: Mapping[str, tuple[list[int], list[float]]]
    wall_seconds: float
    last_epoch: int | None
    evaluations: tuple[Evaluation, ...]
    status: Mapping[str, Any]

    @property
    def planned_epochs(self) -> int | None:
        """Epochs the configuration asks for."""
        epochs = self.config.get("epochs")
        return epochs if isinstance(epochs, int) else None

    @property
    def state(self) -> tuple[str, str]:
        """(one of 'finished', 'failed', 'interrupted', 'unfinished'; the same as a sentence)."""
        planned = self.planned_epochs
        of = f" of {planned}" if planned is not None else ""
        trained = self.metrics.get("reward/mean") or self.metrics.get("loss")
        done = trained[0][-1] if trained else self.last_epoch or 0
        status = str(self.status.get("status", ""))
        evaluated = self.evaluations[-1].epoch if self.evaluations else 0
        if status == "finished" or (planned is not None and min(done, evaluated) >= planned):
            return "finished", f"Finished after {done} epochs"
        if status in ("failed", "interrupted"):
            word = "Stopped by an error" if status == "failed" else "Interrupted"
            return status, f"{word} after epoch {done}{of}"
        return "unfinished", f"Not finished: {done}{of} epochs so far"

    def series(self, name: str, label: str = "") -> Series | None:
        """A logged metric as a curve, None when there is no finite value."""
        epochs, values = self.metrics.get(name, ([], []))
        if not any(math.isfinite(value) for value in values):
            return None
        return Series(label or name, epochs, values)


def read_run(run_dir: Path) -> RunData:
    """Read a run folder; everything in it is optional as long as something is there.

    Raises:
        NotARunError: no such folder, or none of config.yaml, metrics.jsonl and evaluations in it.
        ValueError: a damaged file, by name and line.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise NotARunError(f"{run_dir} is not a folder; expected the output folder of a run")
    config_path, metrics_path = run_dir / "config.yaml", run_dir / METRICS_FILE
    epochs = list_evaluations(run_dir)
    if not (config_path.is_file() or metrics_path.is_file() or epochs):
        raise NotARunError(
            f"{run_dir} is not the folder of a run: it holds none of config.yaml, {METRICS_FILE} and evaluations/"
        )
    config, text = read_config(config_path) if config_path.is_file() else ({}, "")
    rows = read_metrics(run_dir) if metrics_path.is_file() else []
    return RunData(
        run_dir=run_dir,
        config=config,
        config_text=text,
        metrics=_columns(rows),
        wall_seconds=max((float(row.get("wall_seconds", 0.0)) for row in rows), default=0.0),
        last_epoch=max((row["epoch"] for row in rows), default=None),
        evaluations=tuple(load_evaluation(run_dir, epoch) for epoch in epochs),
        status=read_status(run_dir),
    )


def read_config(path: Path) -> tuple[dict[str, Any], str]:
    """A run's config.yaml as plain containers, and as its text.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged; names it.
    """
    try:
        config = load_yaml(path)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    text = path.read_text(encoding="utf-8")
    return ({str(key): value for key, value in config.items()} if isinstance(config, dict) else {}), text


def changes(first: Evaluation, second: Evaluation) -> tuple[Change | None, list[Change], list[Change]]:
    """Overall, per sub-score and per category, over the images that both have; None and empty without such images."""
    i, j = common_images(first, second)
    if not len(i):
        return None, [], []
    groups = first.prompt_index[i]
    skills = [
        _change(name, first.sub_scores[name][i], second.sub_scores[name][j], groups)
        for name in first.sub_scores
        if name in second.sub_scores
    ]
    labels = np.array([first.categories[place] for place in i])
    categories = []
    for name in sorted(set(labels) - {""}):
        chosen = labels == name
        categories.append(_change(str(name), first.scores[i][chosen], second.scores[j][chosen], groups[chosen]))
    return _change("score", first.scores[i], second.scores[j], groups), skills, categories


def score_and_parts(evaluation: Evaluation) -> Mapping[str, Float64]:
    """The sub-scores of each image, and its `score`."""
    return {**evaluation.sub_scores, "score": evaluation.scores}


def heldout_curves(
    evaluations: tuple[Evaluation, ...], values_of: Callable[[Evaluation], Mapping[str, Float64]] = score_and_parts
) -> tuple[int, dict[str, Series]]:
    """Curves with bands over the images that all evaluations share, so that every point judges the same prompts.

    Args:
        evaluations: by ascending epoch.
        values_of: name -> float64 [n], a value for each image of an evaluation.

    Returns:
        (number of shared prompts, {name: Series}); (0, {}) when nothing is shared.
    """
    if not evaluations:
        return 0, {}
    keys = set(image_keys(evaluations[0])).intersection(*map(image_keys, evaluations[1:]))
    if not keys:
        return 0, {}
    columns: dict[str, list[tuple[int, Interval]]] = {}
    for item in evaluations:
        chosen = np.array([key in keys for key in image_keys(item)])
        for name, values in values_of(item).items():
            interval = mean_interval(values[chosen], item.prompt_index[chosen])
            columns.setdefault(name, []).append((item.epoch, interval))
    curves = {}
    for name, points in columns.items():
        mean, low, high = ([interval[k] for _, interval in points] for k in range(3))
        if any(math.isfinite(value) for value in mean):
            curves[name] = Series(name, [epoch for epoch, _ in points], mean, low, high)
    return len({key[0] for key in keys}), curves


def training_curve(run: RunData, name: str, label: str = "") -> Series | None:
    """A logged metric as a curve, None when there is no finite value.

    The mean reward has a 95% interval over an epoch's prompts, where the log has its spreads.
    """
    item = run.series(name, label)
    if name != "reward/mean":
        return item
    prompts = run.config.get("prompts_per_epoch")
    spreads = [dict(zip(*run.metrics.get(name, ([], [])), strict=True)) for name in ("reward/std", "reward/group_std")]
    if item is None or not isinstance(prompts, int) or not all(spreads):
        return item
    std, group_std = spreads
    halves = [
        half_width_of_groups(std.get(int(epoch), math.nan), group_std.get(int(epoch), math.nan), prompts)
        for epoch in item.x
    ]
    low = [value - half for value, half in zip(item.y, halves, strict=True)]
    high = [value + half for value, half in zip(item.y, halves, strict=True)]
    return Series(item.name, item.x, item.y, low, high)


def takes_turns(run: RunData) -> bool:
    """Whether one process sampled and scored in turns, and measured them apart."""
    cluster = run.config.get("cluster")
    inline = not isinstance(cluster, Mapping) or cluster.get("kind", "inline") == "inline"
    return inline and "time/rollout" in run.metrics


def timings(run: RunData) -> list[Timing]:
    """Seconds of each stage over the run, and 'other': what epochs took beyond their stages.

    Evaluation comes on top of an epoch's time. Where one process takes turns, the shares of all stages add up to 1;
    among actors scoring goes on while sampling does, and the shares of all stages but scoring do.
    """
    turns = takes_turns(run)
    seconds = {stage: sum(_finite(run.metrics.get(f"time/{stage}", ([], []))[1])) for stage in STAGES}
    counts = {stage: len(run.metrics.get(f"time/{stage}", ([], []))[0]) for stage in STAGES}
    epoch = run.metrics.get("time/epoch")
    if epoch is not None:
        counts["other"] = len(epoch[0])
        inside = seconds["sample"] + seconds["learn"] + seconds["publish"] + turns * seconds["score"]
        seconds["other"] = max(0.0, sum(_finite(epoch[1])) - inside)
    total = sum(seconds.values()) - (not turns) * seconds["score"]
    rows = []
    for stage, spent in seconds.items():
        if counts[stage]:
            speed = _finite(run.metrics.get(f"images_per_second/{stage}", ([], []))[1])
            rate = sum(speed) / len(speed) if speed else math.nan
            rows.append(Timing(stage, spent, counts[stage], rate, spent / total if total else math.nan))
    return rows


def _change(name: str, before: Float64, after: Float64, groups: Int64) -> Change:
    both = ~np.isnan(before) & ~np.isnan(after)
    before, after, groups = before[both], after[both], groups[both]
    return Change(
        name,
        mean_interval(before, groups),
        mean_interval(after, groups),
        paired_difference_interval(before, after, groups),
        int(both.sum()),
    )


def _columns(rows: list[dict[str, Any]]) -> dict[str, tuple[list[int], list[float]]]:
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        for name, value in row.items():
            if name not in ("epoch", "wall_seconds") and isinstance(value, int | float):
                found.setdefault(name, {})[row["epoch"]] = float(value)
    return {name: (sorted(values), [values[epoch] for epoch in sorted(values)]) for name, values in found.items()}


def _finite(values: list[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]
