"""What Ray has no public API for: where its ports are bound, its own processes and object stores, and where its workers
import from.

tests/cluster/test_ray_internals.py fails when another version of Ray has these no more.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import ray
from ray._private import internal_api, ray_constants, services
from ray.job_config import JobConfig

NETWORKED = ray_constants.ENABLE_RAY_CLUSTER
"""Whether Ray takes the outward address of this machine, unless `set_networked` says otherwise."""


def set_networked(networked: bool) -> None:
    """Have Ray take the outward address of this machine, or else loopback; for the next Ray of this process.

    Ray takes the outward address for its ports even when it is told 127.0.0.1, unless this says that it runs on one
    machine only; its other processes learn it from the environment, which this process has read already.
    """
    ray_constants.ENABLE_RAY_CLUSTER = networked


def bound_to(host: str | None) -> dict[str, Any]:
    """The argument of `ray.init` that binds a private Ray to an address; None for Ray's own choice."""
    return {"_node_ip_address": host}


def bootstrap_address(address: str) -> str:
    """'host:port' of the Ray that an address means, 'auto' included.

    Raises:
        ConnectionError: there is none on this machine, or there are several.
    """
    return str(services.canonicalize_bootstrap_address_or_die(address))


def own_processes() -> set[int]:
    """Process ids of a private Ray that this process has started; empty where there is none."""
    node = ray._private.worker._global_node
    if node is None:
        return set()
    return {one.process.pid for processes in list(node.all_processes.values()) for one in processes}


def store_bytes() -> tuple[int, int, int] | None:
    """Of the object stores of all nodes: bytes in use, their size, and bytes written to disk since they started.

    None where no node answers within 10 seconds.
    """
    try:
        stats = internal_api.get_memory_info_reply(ray._private.state.state, timeout_seconds=10.0).store_stats
    except Exception:  # noqa: BLE001 - a number for the log is no reason to end a run
        return None
    return stats.object_store_bytes_used, stats.object_store_bytes_avail, stats.spilled_bytes_total


def job_without_folders() -> JobConfig:
    """A job whose workers import from nothing of the driver's.

    Ray would put the current folder before all else that workers import from: a `torch.py` there would be theirs.
    """
    job = JobConfig()
    job._py_driver_sys_path = _NoFolders()
    return job


class _NoFolders(list[str]):
    """Stays empty."""

    def extend(self, folders: Iterable[str]) -> None:
        """Nothing is added."""
