"""A folder for temporary files in which Ray's sockets would have too long names is a mistake, found at the start."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from prdp.cli import main
from prdp.cluster.sockets import check_socket_paths
from prdp.support.errors import ConfigError

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="as Ray finds its folder on Linux")


def test_the_longest_folder_that_fits_makes_a_socket_of_the_longest_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """By Ray's own check, for the longest process id."""
    validate = pytest.importorskip("ray._private.utils").validate_socket_filepath
    inside = "/ray/session_2026-11-25_21-12-47_123456_1234567/sockets/plasma_store"
    validate("/" + "t" * 38 + inside)
    with pytest.raises(OSError, match="cannot exceed"):
        validate("/" + "t" * 39 + inside)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/" + "t" * 38)
    check_socket_paths()
    monkeypatch.setenv("TMPDIR", "/" + "\u00e4" * 20)
    with pytest.raises(ConfigError, match=r"^TMPDIR=/\u00e4+: has 41 bytes, must have at most 39 for cluster=ray"):
        check_socket_paths()
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    check_socket_paths()


@pytest.mark.parametrize("command", ["train", "validate"])
def test_it_is_a_mistake_and_no_fault_to_try_again(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("long" * 20)))
    words = ["experiment=shapes_smoke", f"output_dir={tmp_path / 'run'}"]
    assert main([command, *words, "cluster=ray"]) == 2
    assert "TMPDIR=" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main(["validate", *words]) == 0
