"""A start that is refused leaves the run's folder as it was."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prdp import cli, run_parts
from prdp.checkpoints import run_store
from prdp.evaluation.runs import read_trained_run
from prdp.rewards.redness import Redness
from prdp.support.errors import StartError, UserError
from prdp.train import main
from tests.test_train import configured


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes and time of every file below a folder."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(file.relative_to(folder)): (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


@pytest.fixture(scope="module")
def run(small_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A finished run, and what it was configured with besides the defaults."""
    folder = tmp_path_factory.mktemp("refused")
    prompts = folder.parent / "prompts.txt"
    prompts.write_text("a red circle\na blue square\na green star\n")
    changes = {
        "epochs": 1,
        "prompts": {"train": {"_target_": "prdp.prompts.text_file.TextFilePrompts", "path": str(prompts)}},
    }
    main(configured(small_pipeline, folder, **changes))
    return folder, changes


class Refusing:
    """In the place of a workforce: its actors do not start."""

    def __init__(self, *_: Any) -> None:
        raise StartError("the samplers do not start")


def another_version(monkeypatch: pytest.MonkeyPatch, folder: Path) -> dict[str, Any]:
    monkeypatch.setattr(Redness, "version", "99")
    return {}


def other_prompts(monkeypatch: pytest.MonkeyPatch, folder: Path) -> dict[str, Any]:
    real = run_store.fingerprint
    monkeypatch.setattr(run_store, "fingerprint", lambda source: f"{real(source)}0")
    return {}


def no_actors(monkeypatch: pytest.MonkeyPatch, folder: Path) -> dict[str, Any]:
    monkeypatch.setattr(run_parts, "build_workforce", Refusing)
    return {}


def no_tensorboard(monkeypatch: pytest.MonkeyPatch, folder: Path) -> dict[str, Any]:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    return {"tracking": {"tensorboard": True}}


def damaged_log(monkeypatch: pytest.MonkeyPatch, folder: Path) -> dict[str, Any]:
    log = folder / "metrics.jsonl"
    log.write_bytes(b"{damaged\n" + log.read_bytes())
    return {}


def damaged_checkpoints(monkeypatch: pytest.MonkeyPatch, folder: Path) -> dict[str, Any]:
    for file in folder.glob("checkpoints/*/state.json"):
        file.write_bytes(file.read_bytes().replace(b'"epoch": 1', b'"epoch": 2'))
    return {}


def given(**changes: Any) -> Callable[[pytest.MonkeyPatch, Path], dict[str, Any]]:
    return lambda monkeypatch, folder: changes


REFUSALS = {
    "another reward": (given(reward={"_target_": "prdp.rewards.compressibility.Compressibility"}), "reward._target_"),
    "another version of the reward": (another_version, "another version of the reward"),
    "other prompts": (other_prompts, "holds other prompts"),
    "another held-out set": (
        given(
            prompts={"heldout": {"_target_": "prdp.worlds.shapes.prompts.ShapesPrompts", "split": "heldout", "size": 5}}
        ),
        "prompts.heldout.size",
    ),
    "another seed": (given(seed=4), "seed: 3 in the checkpoint, 4 now"),
    "no actors": (no_actors, "do not start"),
    "a tracker that is not installed": (no_tensorboard, "ensor[Bb]oard"),
    "a damaged log": (damaged_log, "line 1 is damaged"),
    "damaged checkpoints": (damaged_checkpoints, "no whole checkpoint"),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_refused_resume_writes_nothing(
    small_pipeline: Path, run: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    import shutil

    prepare, says = REFUSALS[kind]
    folder = tmp_path / "run"
    shutil.copytree(run[0], folder)
    changes = {**run[1], "epochs": 2, "checkpoint": {"resume": "auto"}}
    for key, value in prepare(monkeypatch, folder).items():
        nested = isinstance(value, dict) and "_target_" not in value
        changes[key] = {**changes.get(key, {}), **value} if nested else value
    before = contents(folder)
    with pytest.raises((UserError, ModuleNotFoundError), match=says):
        main(configured(small_pipeline, folder, **changes))
    assert contents(folder) == before


def test_a_refused_start_does_not_rename_the_reward_of_a_run(
    run: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run[0]
    before = contents(folder)
    words = ["experiment=shapes_smoke", "reward=compressibility", f"output_dir={folder}"]
    assert cli.main(["train", *words, "checkpoint.resume=auto"]) == 2
    assert "would break" in capsys.readouterr().err
    assert contents(folder) == before
    assert read_trained_run(folder).reward_name == "redness"
