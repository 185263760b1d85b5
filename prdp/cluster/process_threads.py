"""CPU threads of a process, decided before torch is imported.

torch's OpenMP pool is as wide as the machine has cores and its threads spin while they wait for each other. When one of
those cores is busy with something else - another actor, another job, a container's quota - every parallel region waits
for the thread that does not get to run, thousands of times a second: measured, 50 to 100 times slower than one thread.
The pool's size and its patience are read once, when the OpenMP runtime is loaded, so they belong into the environment
before the first `import torch`. Processes started from this one inherit them.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING

from prdp.cluster.threads import PASSIVE_WAITING, planned_threads, thread_environment

if TYPE_CHECKING:
    from prdp.config import TrainConfig

OPENMP = "OMP_NUM_THREADS"
_applied: str | None = None
"""What this process has set `OPENMP` to."""
_log = logging.getLogger(__name__)


def plan_threads(config: TrainConfig) -> int:
    """CPU threads of this process, as many as each actor gets: the order of additions, and the last bits, follow it."""
    return planned_threads(config.cluster)


def apply_threads(count: int) -> None:
    """Set the thread counts of the numeric libraries for this process and those it starts.

    Call it before torch is imported. Where torch is there already, its pool is resized too, but keeps spinning.

    Raises:
        ValueError: `count` is less than 1.
    """
    if count < 1:
        raise ValueError(f"threads must be at least 1, got {count}")
    global _applied
    given = os.environ.get(OPENMP)
    if given not in (None, "", str(count), _applied):
        _log.warning(
            "%s=%s of the environment is not used: this process takes %d CPU threads, as the configuration says "
            "(cluster.threads, or threads)", OPENMP, given, count,
        )
    _applied = str(count)
    os.environ.update(thread_environment(count))
    for name, value in PASSIVE_WAITING.items():
        os.environ.setdefault(name, value)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(count)
