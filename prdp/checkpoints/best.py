"""Which epoch of a run did best on held-out prompts, as its log tells."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection
from pathlib import Path

from prdp.tracking.jsonl import METRICS_FILE, read_metrics

SCORE = "eval/score"
_log = logging.getLogger(__name__)


def best_epoch(run_dir: Path, metric: str, among: Collection[int]) -> int | None:
    """The epoch with the largest value, the earliest of equals; None where none of the epochs was judged by it.

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
    return min(found, key=lambda epoch: (-found[epoch], epoch), default=None)
