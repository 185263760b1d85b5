"""The object store, where the rollouts of actors lie: its size, how full it is, and what had to go to disk."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from prdp.support.memory import available_memory

_log = logging.getLogger(__name__)

_GIB = 2**30
_SHARE = 0.3
"""Of the machine's memory, as Ray itself would take; taken up only as far as used."""
_SHARE_OF_FREE = 0.6
_FULL = 0.8
"""Of a store: Ray writes to disk from here on."""
_SHARED_MEMORY = Path("/dev/shm")
_MINIMUM = 128 * 2**20


def planned_bytes(gib: float | None, shared_memory: Path = _SHARED_MEMORY) -> int:
    """Size of the object store of a private Ray.

    Args:
        gib: `cluster.object_store_gib`; None takes a share of the memory that there is, as far as shared memory goes.
        shared_memory: where the store lies; Ray takes files in /tmp, which are slower, where this is too small.
    """
    free = shutil.disk_usage(shared_memory).free if shared_memory.is_dir() else None
    if gib is not None:
        size = int(gib * _GIB)
        if free is not None and size > free:
            _log.warning(
                "cluster.object_store_gib=%g: %s has %.2f GiB free, so Ray keeps its objects in files, which is slower",
                gib, shared_memory, free / _GIB,
            )
        return max(_MINIMUM, size)
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, AttributeError):
        return _MINIMUM
    most = [memory * _SHARE, available_memory() * _SHARE_OF_FREE]
    if free is not None:
        most.append(free * 0.95)
    return max(_MINIMUM, int(min(most)))


def planned_room(gib: float | None) -> int:
    """Bytes of the object store of a private Ray before it begins to write to disk; see `planned_bytes`."""
    return int(_FULL * planned_bytes(gib))


class StoreReport:
    """How full the object stores of all nodes are; tells the log of what went to disk."""

    def __init__(self) -> None:
        self._before, self._told = _spilled(), 0

    def look(self) -> dict[str, float]:
        """Look now.

        Returns:
            {"store_gib": in use, "store_spilled_gib": written to disk since the start, for want of room}; empty where
            Ray does not tell.
        """
        from prdp.cluster import ray_internals

        stats = ray_internals.store_bytes()
        if stats is None:
            return {}
        used, size, spilled = stats[0], stats[1], stats[2] - self._before
        if spilled > 2 * self._told:
            self._told = spilled
            _log.warning(
                "the object store (%.2f GiB) has too little room for all that lies in it: %.2f GiB went to disk so "
                "far, and are read again when they are learned from. More room: cluster.object_store_gib, nodes with "
                "more memory, or smaller rollouts",
                size / _GIB, spilled / _GIB,
            )
        return {"store_gib": used / _GIB, "store_spilled_gib": spilled / _GIB}


def _spilled() -> int:
    from prdp.cluster import ray_internals

    stats = ray_internals.store_bytes()
    return 0 if stats is None else stats[2]
