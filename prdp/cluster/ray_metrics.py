"""The numbers of each epoch as Ray gauges, which every node's metrics agent offers to Prometheus."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Gauge

_log = logging.getLogger(__name__)

PREFIX = "prdp_"
"""Of every gauge; Prometheus shows them with Ray's own prefix before it, as `ray_prdp_reward_mean`."""


class RayMetrics:
    """Gauges of one run, made when a number first comes, tagged `run`.

    Args:
        run: what tells this run from others on the same cluster, such as the name of its folder.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauges: dict[str, Any] = {}
        self._sources: dict[str, str] = {}

    def log(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Set `prdp_epoch` and a gauge for each finite number; the others keep what they showed.

        A name that becomes the same gauge as another one's is left out, with one warning.

        Args:
            metrics: numbers of an epoch, by the names that logs know, such as 'reward/mean' or 'time/sample'.
            epoch: number of finished epochs.
        """
        for name, value in {"epoch": epoch, **metrics}.items():
            gauge = gauge_name(name)
            source = self._sources.setdefault(gauge, name)
            if source != name:
                if name not in self._sources.values():
                    self._sources[f"{gauge} of {name}"] = name
                    _log.warning("metrics '%s' and '%s' would both be the gauge %s: the first is", source, name, gauge)
                continue
            if not math.isfinite(value):
                continue
            if gauge not in self._gauges:
                description = f"'{name}' of the run's last finished epoch"
                self._gauges[gauge] = Gauge(gauge, description, ("run",)).set_default_tags({"run": self._run})
            self._gauges[gauge].set(float(value))


def gauge_name(metric: str) -> str:
    """A metric's name as Prometheus takes them: 'time/sample' is prdp_time_sample_seconds, a time in seconds."""
    plain = re.sub(r"[^a-zA-Z0-9]+", "_", metric).strip("_").lower()
    timed = metric.startswith("time/") or metric == "time"
    return f"{PREFIX}{plain}{'_seconds' if timed else ''}"
