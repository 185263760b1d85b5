"""Folders that cannot be written, and folders that hold something: one clear line, and nothing half-written."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from prdp.checkpoints import run_folder
from prdp.checkpoints.run_folder import check_unused, check_writable
from prdp.cli import main
from prdp.configuration.compose import Composer
from prdp.support import storage
from prdp.support.errors import ConfigError, StartError
from prdp.tracking.jsonl import JsonlTracker
from prdp.tracking.status_file import start_status
from tests.fake_run import fake_parts, fake_run


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("file", "file is a file, must be a folder"),
        ("file/run", "file is a file, must be a folder"),
        ("file/deep/run", "file is a file, must be a folder"),
        ("x" * 300, "File name too long"),
        ("loop/run", "symbolic links"),
    ],
)
def test_places_where_no_folder_can_be(tmp_path: Path, place: str, says: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ConfigError, match=says):
        check_writable(tmp_path / place)


def test_a_folder_that_others_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_writable(tmp_path / "new" / "run")
    monkeypatch.setattr(os, "access", lambda place, mode: Path(place) != tmp_path)
    with pytest.raises(ConfigError, match=f"{tmp_path} cannot be written"):
        check_writable(tmp_path / "new" / "run")


def test_a_disk_that_takes_no_folder_whatever_its_modes_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = os.mkdir

    def refuse(path: Any, mode: int = 0o777) -> None:
        if Path(path).parent == tmp_path:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        make(path, mode)

    check_writable(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(ConfigError, match=rf"^output_dir=.*/run: no folder can be made in {tmp_path}: No such file"):
        check_writable(tmp_path / "run")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc")
def test_a_folder_of_hydras_own_that_cannot_be_made() -> None:
    message = r"^/proc/none cannot be made, for Hydra's own files: No such file"
    words = ["hydra.sweep.dir=/proc/none", "seed=1,2"]
    with Composer(words, sweep=True) as composer, pytest.raises(StartError, match=message):
        composer.run(lambda config: None)


@pytest.mark.parametrize("name", ["checkpoints", "evaluations", "tensorboard", "wandb", ".hydra"])
def test_a_run_is_linked_as_a_whole_or_not_at_all(tmp_path: Path, name: str) -> None:
    for folder in ("run", "elsewhere"):
        (tmp_path / folder).mkdir()
    (tmp_path / "whole").symlink_to(tmp_path / "run")
    check_writable(tmp_path / "whole")
    (tmp_path / "run" / name).symlink_to(tmp_path / "elsewhere")
    for folder in ("run", "whole"):
        with pytest.raises(ConfigError, match=rf"{folder}: {name} is a link to .*/elsewhere, outside of the run's"):
            check_writable(tmp_path / folder)


@pytest.mark.parametrize("command", ["train", "validate"])
@pytest.mark.parametrize(("place", "says"), [("file/run", "file is a file"), ("x" * 300, "File name too long")])
def test_commands_tell_it_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, place: str, says: str
) -> None:
    (tmp_path / "file").touch()
    assert main([command, "experiment=shapes_smoke", f"output_dir={tmp_path / place}"]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_is_unused_until_an_epoch_is_done(tmp_path: Path) -> None:
    check_unused(tmp_path / "none")
    tracker = JsonlTracker(tmp_path, "abc")
    tracker.log({"eval/score": 0.5}, 0)
    with pytest.raises(ConfigError, match=rf"pid {os.getpid()} on .* is at work there"):
        check_unused(tmp_path)
    tracker.finish("failed")
    check_unused(tmp_path)
    tracker.log({"loss": 0.5}, 1)
    with pytest.raises(ConfigError, match=r"continue it by checkpoint\.resume=auto"):
        check_unused(tmp_path)


@pytest.mark.parametrize("name", ["weights", "checkpoints/epoch_00000"])
def test_weights_and_checkpoints_are_work(tmp_path: Path, name: str) -> None:
    start_status(tmp_path, status="failed")
    (tmp_path / "checkpoints").mkdir()
    check_unused(tmp_path)
    (tmp_path / name).mkdir(parents=True)
    with pytest.raises(ConfigError, match="holds a run"):
        check_unused(tmp_path)


def test_a_damaged_log_is_not_started_over(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 0}\nx\n{"epoch": 1}\n')
    with pytest.raises(ConfigError, match="holds a run"):
        check_unused(tmp_path)


@pytest.mark.parametrize("file", ["config.yaml", "prompts.jsonl", "metrics.jsonl", "status.json"])
def test_a_full_disk_at_the_start_is_told_and_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    fake_parts(monkeypatch)
    replace, opened = os.replace, os.open

    def full(source: Any, target: Any) -> None:
        if Path(target).name == file:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    def full_to_open(path: Any, *arguments: Any, **keywords: Any) -> int:
        if Path(path).name == file:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return opened(path, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        patch.setattr(os, "open", full_to_open)
        with pytest.raises(storage.StorageError, match=rf"could not write .*{file}: No space left on device"):
            fake_run(tmp_path / "run")
    assert not list((tmp_path / "run").glob(f"{storage.TEMPORARY}*"))
    assert not (tmp_path / "run" / file).exists()
    # The same command starts the run once there is room.
    with_room = fake_run(tmp_path / "run")
    with_room.train()
    with_room.close()


def test_what_the_last_words_say_without_a_checkpoint(tmp_path: Path) -> None:
    assert run_folder.last_words(OSError("reset"), tmp_path, None).startswith("no checkpoint is written yet; start")
