"""How many CPU threads a process may use. Numeric libraries read this once, when they are loaded."""

from __future__ import annotations

import os
from pathlib import Path

from prdp.config import ClusterConfig

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


def thread_environment(threads: int) -> dict[str, str]:
    """Environment variables that hold every numeric library to `threads`; set them before torch or numpy is imported."""
    return dict.fromkeys(THREAD_VARIABLES, str(threads))


def planned_threads(config: ClusterConfig) -> int:
    """`cluster.threads`, or for 0 an even share of the cores for each sampler (all of them inline)."""
    if config.threads < 0:
        raise ValueError(f"cluster.threads must be 0 (plan) or more, got {config.threads}")
    if config.threads:
        return config.threads
    return max(1, usable_cores() // (config.samplers if config.kind == "ray" else 1))


def usable_cores() -> int:
    """Cores this process may use: its affinity, further limited by a container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota_file = Path("/sys/fs/cgroup/cpu.max")
    quota, _, period = quota_file.read_text().partition(" ") if quota_file.is_file() else ("max", "", "")
    return max(1, min(cores, int(quota) // int(period))) if quota.strip().isdigit() else cores
