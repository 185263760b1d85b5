"""One private Ray for all tests of this room."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def private_ray() -> Iterator[None]:
    """Eight logical CPUs and no GPU, whatever the machine has."""
    ray = pytest.importorskip("ray")
    from prdp.cluster.ray_session import connect
    from prdp.config import ClusterConfig

    owned = connect(ClusterConfig(kind="ray"), [{"CPU": 1.0}] * 8)
    yield
    if owned:
        ray.shutdown()
