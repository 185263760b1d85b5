"""Which epoch of a run did best on held-out prompts, as its log and its evaluations tell."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection
from pathlib import Path

import numpy as np

from prdp.tracking.evaluations import image_keys, load_evaluation
from prdp.tracking.jsonl import METRICS_FILE, read_metrics

SCORE = "eval/score"
_log = logging.getLogger(__name__)


def best_epoch(run_dir: Path, metric: str, among: Collection[int]) -> int | None:
    """The epoch with the largest value, the earliest of equals; None where none of the epochs was judged by it.

    Compared are the images that all of these evaluations have: the last one of a run has more prompts than those on
    the way, and its logged mean is another set's. Without such images, or their files, the logged means count.

    Args:
        run_dir: the run's folder.
        metric: of the log, such as eval/score.
        among: epochs that count, such as those with a checkpoint.

    Raises:
        ValueError: the log is damaged.
    """
    if not (run_dir / METRICS_FILE).is_file():
        return None
    found: dict[int, float] = {}
    lines = read_metrics(run_dir)
    if not any(metric in line for line in lines):
        known = sorted({name for line in lines for name in line if name.startswith("eval/")})
        _log.warning("checkpoint.keep_best=%s: no evaluation has told it; there are %s", metric, ", ".join(known))
    for line in lines:
        value = line.get(metric)
        if line["epoch"] in among and isinstance(value, int | float) and math.isfinite(value):
            found[int(line["epoch"])] = float(value)
    found = _of_shared_images(run_dir, metric, found) or found
    return min(found, key=lambda epoch: (-found[epoch], epoch), default=None)


def _of_shared_images(run_dir: Path, metric: str, epochs: Collection[int]) -> dict[int, float]:
    """Means over the images that the evaluations of all epochs have; empty where that cannot be told."""
    try:
        evaluations = [load_evaluation(run_dir, epoch) for epoch in epochs]
    except (OSError, ValueError):
        return {}
    shared = set.intersection(*(set(image_keys(one)) for one in evaluations)) if evaluations else set()
    means: dict[int, float] = {}
    for one in evaluations:
        values = one.scores if metric == SCORE else one.sub_scores.get(metric.removeprefix("eval/"), np.empty(0))
        chosen = values[[key in shared for key in image_keys(one)]] if len(values) else values
        if not np.isfinite(chosen).any():
            return {}
        means[one.epoch] = float(np.nanmean(chosen))
    return means

