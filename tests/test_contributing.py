"""The examples of CONTRIBUTING.md run as they stand there, from a folder outside the package."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import prdp
from prdp.cli import main

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`([\w./]+)`:\n\n```\w+\n(.*?)```$", TEXT, re.DOTALL | re.MULTILINE))
[COMMANDS] = re.findall(r"^```sh\n(.*?)```$", TEXT, re.DOTALL | re.MULTILINE)


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[str]]]:
    """The files of the guide in the current folder; its commands, without 'prdp'."""
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield [shlex.split(line)[1:] for line in COMMANDS.splitlines()]
    for name in FILES:
        sys.modules.pop(name.removesuffix(".py"), None)


def test_the_examples_run_from_outside_the_package(
    outside: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    validate, train = outside
    assert main(validate) == 0
    assert main(train) == 0
    assert "tokenizer" not in capsys.readouterr().out, "a family of one's own needs none"
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["epoch"] for row in rows if "reward/mean" in row] == [1, 2, 3]
    assert all(0.0 <= row["reward/mean"] <= 1.0 for row in rows if "reward/mean" in row)
    assert all(row["ratio_error"] < 1e-5 for row in rows if "ratio_error" in row)
    assert Path("run/weights/network.safetensors").is_file()


def test_a_kind_of_evidence_from_outside_the_package(outside: list[list[str]]) -> None:
    own = ["objective=callable", "objective._target_=my_evidence.method", "+objective.levels=3"]
    command = [word for word in outside[1] if not word.startswith(("objective.", "output_dir=", "epochs="))]
    for microbatch in (5, 1000):
        words = [f"output_dir=run{microbatch}", "epochs=1", f"learner.microbatch={microbatch}"]
        assert main([*command, *own, *words]) == 0
    lines = [Path(f"run{size}/metrics.jsonl").read_text(encoding="utf-8").splitlines() for size in (5, 1000)]
    few, many = ([json.loads(line) for line in run if "clean_error" in line] for run in lines)
    assert few[0]["clean_error"] > 0
    for name in ("clean_error", "loss", "grad_norm"):
        assert few[0][name] == pytest.approx(many[0][name], rel=1e-4, abs=1e-7), name


def test_an_argument_that_check_refuses_is_named(outside: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*outside[0], "reward.power=0"]) == 2
    assert "reward.power=0" in (told := capsys.readouterr().err) or "power=0: must be above 0" in told


def test_pictures_of_the_family_are_colours(outside: list[list[str]]) -> None:
    import torch

    from prdp.config import LearnerConfig, ModelConfig
    from prdp.diffusion import build_policy

    model = ModelConfig(family="my_family.ColourPolicy", path="colours", device="cpu")
    sys.path.insert(0, str(Path.cwd()))
    policy = build_policy(model, LearnerConfig(mode="full"), seed=0, keep_reference=False)
    pictures = policy.decode(torch.tensor([[1.0, -1.0, -1.0], [0.0, 2.0, -3.0]])[:, :, None, None])
    assert pictures.shape == (2, 8, 8, 3)
    np.testing.assert_array_equal(pictures[:, 0, 0], [[255, 0, 0], [128, 255, 0]])


def test_one_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (\S+)$", citation, re.MULTILINE) == [prdp.__version__]
    assert "version = attr: prdp.__version__" in (ROOT / "setup.cfg").read_text(encoding="utf-8")


def test_the_design_names_the_floors_of_the_imports() -> None:
    from test_layout import FLOORS

    design = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\d+\. (`.*`)$", design, re.MULTILINE)
    assert tuple(tuple(re.findall(r"`([^`]+)`", line)) for line in lines) == FLOORS
