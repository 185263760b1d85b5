"""One private Ray for all tests of this room, and one workforce for those that need no other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def private_ray() -> Iterator[Any]:
    """A Ray of this process, with a dashboard."""
    ray = pytest.importorskip("ray")
    from prdp.cluster.ray_session import connect
    from prdp.config import ClusterConfig

    owned = connect(ClusterConfig(kind="ray", dashboard=True))
    yield ray
    if owned:
        ray.shutdown()


@pytest.fixture(scope="session")
def shared(private_ray: Any) -> Iterator[Any]:
    """Two samplers and a reward actor, two retries."""
    from cluster_stubs import StubSampler, build_worker

    from prdp.cluster import build_workforce
    from prdp.config import ClusterConfig

    workforce = build_workforce(ClusterConfig(kind="ray", samplers=2, retries=2), StubSampler, build_worker, 2)
    yield workforce
    workforce.close()
