"""A place where no training starts."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, where no training starts."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def start(config: object) -> None:
        raise AssertionError("training starts")

    monkeypatch.setitem(sys.modules, "prdp.train", types.SimpleNamespace(main=start))
    return folder
