"""Memory that is left, of the machine and of a container's limit."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from prdp.support.memory import available_memory

MIB = 2**20


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 900 * MIB}))
    return tmp_path / "own"


def test_without_limits_it_is_the_machine_s(tmp_path: Path, own: Path) -> None:
    assert available_memory(tmp_path, own) == 900 * MIB
    own.write_text("0::/a/b\n")
    write(tmp_path / "a" / "b", memory__max="max\n", memory__current=f"{MIB}\n")
    assert available_memory(tmp_path, own) == 900 * MIB


def test_the_limit_of_a_group_or_of_one_around_it(tmp_path: Path, own: Path) -> None:
    own.write_text("0::/a/b\n")
    write(tmp_path / "a", memory__max=f"{500 * MIB}\n", memory__current=f"{300 * MIB}\n")
    write(tmp_path / "a" / "b", memory__max="max\n", memory__current=f"{MIB}\n")
    assert available_memory(tmp_path, own) == 200 * MIB
    write(tmp_path / "a", memory__stat=f"anon 5\ninactive_file {50 * MIB}\n")
    assert available_memory(tmp_path, own) == 250 * MIB, "cached files give way"
    write(tmp_path / "a" / "b", memory__max=f"{10 * MIB}\n")
    assert available_memory(tmp_path, own) == 9 * MIB


def test_the_limit_of_version_1(tmp_path: Path, own: Path) -> None:
    own.write_text("5:cpu:/x\n4:memory:/outside/its/name\n")
    write(tmp_path / "memory", memory__limit_in_bytes=f"{100 * MIB}", memory__usage_in_bytes=f"{30 * MIB}")
    assert available_memory(tmp_path, own) == 70 * MIB
