"""What is used of Ray's private parts is there and means what it is used for; no Ray is started."""

from __future__ import annotations

import inspect
import sys
from types import SimpleNamespace

import pytest

pytest.importorskip("ray")

import ray
from ray._private import services, worker
from ray._private.node import Node

from prdp.cluster import ray_internals


def test_networked_decides_between_loopback_and_the_outward_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_global_node", None)
    monkeypatch.setattr(services, "node_ip_address_from_perspective", lambda address: "192.0.2.7")
    try:
        ray_internals.set_networked(False)
        assert services.get_node_ip_address() in ("127.0.0.1", "::1")
        ray_internals.set_networked(True)
        assert services.get_node_ip_address() == "192.0.2.7"
    finally:
        ray_internals.set_networked(ray_internals.NETWORKED)


def test_an_address_with_a_port_stands_for_itself() -> None:
    assert ray_internals.bootstrap_address("192.0.2.7:6379") == "192.0.2.7:6379"


def test_ray_reads_the_argument_that_binds_it() -> None:
    source = inspect.getsource(ray.init)
    assert all(f'"{name}"' in source for name in ray_internals.bound_to("127.0.0.1"))


def test_a_job_hands_no_folder_to_its_workers() -> None:
    job = ray_internals.job_without_folders()
    job._py_driver_sys_path.extend(sys.path)
    assert list(job._get_proto_job_config().py_driver_sys_path) == []
    assert "_py_driver_sys_path.extend" in inspect.getsource(worker.connect)


def test_own_processes_are_those_of_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(pid: int) -> SimpleNamespace:
        return SimpleNamespace(process=SimpleNamespace(pid=pid))

    node = SimpleNamespace(all_processes={"raylet": [started(11)], "gcs_server": [started(12), started(13)]})
    monkeypatch.setattr(worker, "_global_node", node)
    assert ray_internals.own_processes() == {11, 12, 13}
    monkeypatch.setattr(worker, "_global_node", None)
    assert ray_internals.own_processes() == set()
    assert "self.all_processes" in inspect.getsource(Node)
    assert "process" in services.ProcessInfo._fields
