"""A whole run, for the tests of what is made of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic_run import make_run


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 20 epochs, with three evaluations; read alone, but for its report."""
    return make_run(tmp_path_factory.mktemp("runs") / "whole")
