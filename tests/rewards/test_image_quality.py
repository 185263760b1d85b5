"""pyiqa's metrics, through a stand-in for pyiqa: what is passed on, which sign comes back, what is refused."""

from __future__ import annotations

import hashlib
import importlib.machinery
import os
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prdp.rewards.dependencies import MissingDependencyError
from prdp.rewards.image_quality import ImageQuality


class Metric:
    """Mean brightness; for 'less' the less the better."""

    def __init__(self, name: str) -> None:
        self.lower_better = name == "less"

    def __call__(self, images: Any) -> Any:
        return images.mean(dim=(1, 2, 3))[:, None]


@pytest.fixture
def pyiqa(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Installs the stand-in; the list is of the metrics that were made."""
    made: list[tuple[str, dict[str, Any]]] = []
    module: Any = types.ModuleType("pyiqa")
    module.__version__ = "0"
    module.__spec__ = importlib.machinery.ModuleSpec("pyiqa", None)
    module.list_models = lambda mode: {"NR": ["less", "more"], "FR": ["versus"]}[mode]
    module.create_metric = lambda name, **arguments: made.append((name, arguments)) or Metric(name)
    monkeypatch.setitem(sys.modules, "pyiqa", module)
    return made


def test_higher_is_better_whatever_the_metric(pyiqa: list[Any]) -> None:
    images = np.stack([np.full((4, 4, 3), value, np.uint8) for value in (0, 51, 255)])
    for metric, sign in (("more", 1), ("less", -1)):
        reward = ImageQuality(metric, device="cpu", batch_size=2)
        assert (reward.name, reward.version) == (metric, "1-pyiqa0")
        np.testing.assert_allclose(reward.score(images, [""] * 3, [{}] * 3), sign * np.array([0, 0.2, 1]), rtol=1e-6)


def test_weights_are_passed_on_and_part_of_the_version(pyiqa: list[Any], tmp_path: Path) -> None:
    import torch

    torch.save({"params": {"w": torch.ones(1)}}, tmp_path / "w.pth")
    reward = ImageQuality("more", path=str(tmp_path / "w.pth"), device="cpu")
    assert pyiqa == [("more", {"device": "cpu", "pretrained_model_path": str(tmp_path / "w.pth")})]
    assert reward.version == f"1-pyiqa0-{hashlib.sha256((tmp_path / 'w.pth').read_bytes()).hexdigest()[:12]}"
    with pytest.raises(ValueError, match="there is no file"):
        ImageQuality.check("more", path=str(tmp_path / "no.pth"))


class Touch:
    """Pickled, it is a call of os.system."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def test_weights_that_would_run_code_never_reach_pyiqa(pyiqa: list[Any], tmp_path: Path) -> None:
    import torch

    for name in ("w.pth", "w.mat"):
        torch.save({"params": Touch(tmp_path / "ran")}, tmp_path / name)
        with pytest.raises(ValueError, match="may run foreign code"):
            ImageQuality("more", path=str(tmp_path / name), device="cpu")
    (tmp_path / "w.mat").write_bytes(b"MATLAB 5.0 MAT-file")
    ImageQuality("more", path=str(tmp_path / "w.mat"), device="cpu")
    assert len(pyiqa) == 1
    assert not (tmp_path / "ran").exists()


def test_what_pyiqa_lacks_or_cannot_do_alone_is_refused(pyiqa: list[Any]) -> None:
    for metric, message in [
        ("versus", "metric=versus: not among the metrics .* that need no reference image; these are less, more"),
        ("mroe", "Did you mean 'more'"),
    ]:
        with pytest.raises(ValueError, match=message):
            ImageQuality.check(metric)


def test_a_pyiqa_that_cannot_be_imported_is_told_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "pyiqa.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"does torchvision fit torch\? operator torchvision::nms does"):
        ImageQuality.check()


def test_without_pyiqa_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pyiqa", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"needs pyiqa, which is not installed: pip install 'pyiqa=="):
        ImageQuality.check()
