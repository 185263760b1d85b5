"""One set of the small pipeline for all tests of the folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from set_folders import made


@pytest.fixture(scope="session")
def base_set(small_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four prompts x two images, scored by the judge and by redness: not to be harmed."""
    return made(tmp_path_factory.mktemp("sets") / "base", small_pipeline, "rewards=[shapes_judge,redness]")
