"""How large the object store is, and that what goes to disk is told; no Ray is started."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("ray")

from prdp.cluster import object_store, ray_internals
from prdp.cluster.object_store import StoreReport, planned_bytes

GIB = 2**30


@pytest.mark.parametrize(
    ("memory", "available", "shared", "expected"),
    [(100, 90, 90, 30.0), (100, 40, 90, 24.0), (100, 90, 20, 19.0), (0.25, 0.25, 0.25, 0.125)],
    ids=["a share of the machine", "of what is free", "what shared memory holds", "at least 128 MiB"],
)
def test_the_size_follows_from_the_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, memory: float, available: float, shared: float, expected: float
) -> None:
    monkeypatch.setattr("os.sysconf", lambda name: {"SC_PAGE_SIZE": 4096}.get(name, int(memory * GIB / 4096)))
    monkeypatch.setattr(object_store, "available_memory", lambda: int(available * GIB))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=int(shared * GIB)))
    assert planned_bytes(None, tmp_path) / GIB == pytest.approx(expected)


def test_a_size_that_is_asked_for_is_taken_and_told_where_shared_memory_is_less(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2 * GIB))
    assert planned_bytes(1.5, tmp_path) == 1.5 * GIB
    assert not caplog.text
    assert planned_bytes(3.0, tmp_path) == 3 * GIB
    assert f"cluster.object_store_gib=3: {tmp_path} has 2.00 GiB free" in caplog.text


def test_what_goes_to_disk_is_told_when_it_begins_and_when_it_has_doubled(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spilled = [5 * GIB]  # by whoever used this Ray before
    monkeypatch.setattr(ray_internals, "store_bytes", lambda: (GIB // 2, 2 * GIB, spilled[0]))
    report, told = StoreReport(), []
    for more in (0, 1, 1, 2, 3):
        spilled[0] = (5 + more) * GIB
        caplog.clear()
        assert report.look() == {"store_gib": 0.5, "store_spilled_gib": more}
        told.append(caplog.text)
    assert [bool(text) for text in told] == [False, True, False, False, True]
    assert "the object store (2.00 GiB) has too little room for all that lies in it: 1.00 GiB went to disk" in told[1]
    monkeypatch.setattr(ray_internals, "store_bytes", lambda: None)
    assert report.look() == {}
