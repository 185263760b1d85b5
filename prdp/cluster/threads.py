"""How many CPU threads an actor or the learner gets. Numeric libraries read this once, when they are loaded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prdp.config import ClusterConfig


THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
PASSIVE_WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
"""Waiting threads sleep instead of spinning, for the OpenMP runtimes of GCC and of Intel."""


def thread_environment(threads: int) -> dict[str, str]:
    """Environment variables that hold numeric libraries to `threads`; set them before torch or numpy is imported."""
    return dict.fromkeys(THREAD_VARIABLES, str(threads))


def planned_threads(config: ClusterConfig) -> int:
    """CPU threads of every process of a run: `cluster.threads`, or for 0 an even share of the cores for each actor.

    All processes get the same number, since the number of threads decides the order of additions and so the last bits.
    """
    if config.threads < 0:
        raise ValueError(f"cluster.threads must be 0 (plan) or more, got {config.threads}")
    if config.threads:
        return config.threads
    at_work = config.learners
    if config.kind == "ray":
        at_work = max(at_work, config.samplers + config.reward_actors)
    return max(1, usable_cores() // at_work)


def usable_cores() -> int:
    """Cores this process may use: its affinity, cut by the quota of its control group where there is one."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(affinity, _quota(Path("/sys/fs/cgroup/cpu.max"), affinity)))


def _quota(file: Path, default: int) -> int:
    """Whole cores that cpu.max ('max 100000' or '150000 100000') allows; `default` where there is no limit."""
    try:
        quota, period = file.read_text().split()
        return default if quota == "max" else int(quota) // int(period)
    except (OSError, ValueError):
        return default
