"""A private Ray stays private and ends with the workforce that started it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("ray")

from prdp.cluster import ray_session
from prdp.cluster.base import ClusterError
from prdp.cluster.ray_session import _set_environment
from prdp.config import ClusterConfig
from prdp.support.errors import UserError

LOOPBACK = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")
linux = pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads the sockets of Linux")


def descendants(root: int) -> set[int]:
    """Processes started by this one, and by those."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    family = {root}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return family


def listening(family: set[int]) -> Iterator[str]:
    """Addresses, as the kernel writes them, that the processes listen on."""
    inodes = set()
    for pid in family:
        for entry in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                inodes.add(os.readlink(entry).removeprefix("socket:[").removesuffix("]"))
            except OSError:
                continue
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                yield fields[1].split(":")[0]


@linux
def test_dashboard_and_ports_listen_on_loopback_only(shared):
    addresses = list(listening(descendants(os.getpid())))
    assert len(addresses) >= 8
    assert not [address for address in addresses if address not in LOOPBACK]


OWN_CLUSTER = """
    import os, sys
    sys.path.insert(0, sys.argv[1])
    from cluster_stubs import StubSampler, build_worker, prompts, weights
    from test_ray_session import LOOPBACK, descendants, listening
    from prdp.cluster import build_workforce
    from prdp.config import ClusterConfig

    workforce = build_workforce(ClusterConfig(kind="ray", samplers=1), StubSampler, build_worker, 2)
    workforce.publish(weights())
    workforce.sample(prompts(4), images_per_prompt=2, seed=1)
    print("open", [address for address in listening(descendants(os.getpid())) if address not in LOOPBACK])
    import ray
    from ray._common.usage.usage_lib import usage_stats_enabled
    print("usage", usage_stats_enabled())
    print("auth", os.environ["RAY_AUTH_MODE"], len(os.environ["RAY_AUTH_TOKEN"]))
    workforce.close()
    workforce.close()
    print("running", ray.is_initialized())
"""


@linux
def test_own_cluster_is_private_by_default_and_ends_with_the_workforce(tmp_path):
    script = tmp_path / "own_cluster.py"
    script.write_text(textwrap.dedent(OWN_CLUSTER))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": "/nowhere", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    result = subprocess.run(
        [sys.executable, str(script), str(Path(__file__).parent)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["open []", "usage False", "auth token 64", "running False"]
    assert not Path("/nowhere").exists()


def test_address_without_a_cluster_is_named(tmp_path):
    script = tmp_path / "join.py"
    script.write_text(
        "from prdp.cluster.ray_session import connect\n"
        "from prdp.config import ClusterConfig\n"
        "from prdp.cluster.base import ClusterSetupError\n"
        "try:\n    connect(ClusterConfig(kind='ray', address='127.0.0.1:1025'))\n"
        "except ClusterSetupError as error:\n    print(error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    result = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False, timeout=180
    )
    assert "cluster.address=127.0.0.1:1025: could not join a running Ray" in result.stdout, result.stderr


def test_environment_of_the_user_stands(monkeypatch):
    for name in list(os.environ):
        if name.startswith("RAY_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    _set_environment(ClusterConfig(), local=True)
    assert "RAY_AUTH_TOKEN" not in os.environ
    assert os.environ["RAY_prestart_worker_first_driver"] == "0"  # noqa: SIM112
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"
    assert os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    monkeypatch.delenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")
    _set_environment(ClusterConfig(host="192.0.2.7"), local=True)
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in os.environ


def test_a_ray_that_does_not_start_is_tried_again_and_named(monkeypatch, caplog):
    tries = []

    def fail(**options):
        tries.append(options)
        raise Exception("the node timed out during startup")

    monkeypatch.setattr(ray_session.ray, "init", fail)
    monkeypatch.setattr(ray_session.ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray_session.ray, "is_initialized", lambda: False)
    with pytest.raises(ClusterError, match=r"no private Ray starts, in 3 attempts: the node timed out") as caught:
        ray_session.connect(ClusterConfig(kind="ray"))
    assert not isinstance(caught.value, UserError)
    assert len(tries) == 3
    assert "is tried again" in caplog.text


def test_an_address_in_the_environment_that_is_not_used_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ray_session.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray_session, "_set_environment", lambda config, local: None)
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    ray_session.connect(ClusterConfig(kind="ray", address="auto"))
    assert caplog.text == ""
    ray_session.connect(ClusterConfig(kind="ray"))
    assert "RAY_ADDRESS=head:6379 of the environment is not used: cluster.address=local" in caplog.text
    assert "cluster.address=auto joins" in caplog.text
