"""Progress: plain lines, live bars, the file."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from prdp.support.storage import StorageError
from prdp.tracking import console
from prdp.tracking.console import Progress, format_seconds
from prdp.tracking.status_file import read_status, start_status

METRICS = {
    "reward/mean": 0.6123,
    "loss": 0.0123,
    "approx_kl": 1.2e-5,
    "clipfrac": 0.25,
    "images_per_second/epoch": 31.2,
    "unheard_of": 1.0,
}


class Clock:
    """A clock that a test moves."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1_800_000_000.0 + self.now

    def strftime(self, style: str) -> str:
        return "2000-01-01 00:00:00"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(console, "time", clock)
    return clock


def test_without_a_terminal_every_epoch_is_a_line_there_and_in_the_file(tmp_path: Path, clock: Clock) -> None:
    stream = io.StringIO()
    with Progress(12, 10, tmp_path, stream=stream) as progress:
        progress.message("16 prompts x 8 images")
        with progress.stage("sample", 128) as stage:
            stage.advance(100)
            stage.advance(28)
            assert stage.done == 128
        clock.now = 65.0
        progress.epoch_done({**METRICS, "eval/score": 0.7})
        clock.now = 130.0
        progress.epoch_done(METRICS)
    lines = stream.getvalue().splitlines()
    assert lines == [
        "16 prompts x 8 images",
        "epoch 11/12  reward 0.6123  eval 0.7000  loss 0.0123  kl 1.20e-05  clip 25%  img/s 31.2  left 1m 05s",
        "epoch 12/12  reward 0.6123  loss 0.0123  kl 1.20e-05  clip 25%  img/s 31.2  left 0s",
    ]
    logged = (tmp_path / "progress.log").read_text().splitlines()
    assert [line.split("  ", 1)[1] for line in logged] == lines


def test_the_estimate_leaves_out_what_came_before_the_first_epoch(clock: Clock) -> None:
    with Progress(4, enabled=False) as progress:
        assert progress.seconds_left() is None
        clock.now = 510.0
        progress.epoch_done({"time/epoch": 10.0})
        assert progress.seconds_left() == 30.0
        progress.epoch_done({"time/epoch": 12.0, "time/evaluate": 8.0})
        assert progress.seconds_left() == 30.0


def test_in_a_terminal_there_are_bars_with_the_numbers_below(tmp_path: Path) -> None:
    stream = io.StringIO()
    with Progress(4, 1, tmp_path, stream=stream, interactive=True) as progress:
        with progress.stage("sample + score", 64) as stage:
            stage.advance(64)
        progress.epoch_done({**METRICS, "eval/score": 0.7})
        progress.message("[brackets] stay")
    text = stream.getvalue()
    for part in ("epochs", "sample + score", "eval 0.7000", "2/4", "[brackets] stay"):
        assert part in text, part
    assert len((tmp_path / "progress.log").read_text().splitlines()) == 2


def test_disabled_is_silent_but_keeps_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(1, 0, tmp_path, enabled=False) as progress:
        with progress.stage("learn", 8) as stage:
            stage.advance(8)
        progress.message("hello")
        progress.epoch_done({})
    assert capsys.readouterr().out == ""
    assert (tmp_path / "progress.log").read_text().count("\n") == 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "?"), (0.4, "0s"), (59.6, "1m 00s"), (185, "3m 05s"), (7800, "2h 10m"), (100000, "1d 3h")],
)
def test_seconds_as_people_say_them(seconds: float | None, text: str) -> None:
    assert format_seconds(seconds) == text


def test_a_run_with_a_status_has_its_progress_and_its_actors_there(tmp_path: Path, clock: Clock) -> None:
    start_status(tmp_path, status="running", run_id="abc")
    actor = {"name": "sampler 0", "kind": "sampler", "state": "alive", "node": "n", "pid": 7}
    actor |= {"restarts": 1, "chunks": 4}
    with Progress(4, 1, tmp_path, enabled=False) as progress:
        assert read_status(tmp_path)["progress"]["seconds_left"] is None
        with progress.stage("sample", 64) as stage:
            stage.advance(48)
            progress.cluster(lambda: {"actors": [actor], "last_fault": {"time": 5.0, "text": "sampler 0 died"}})
            status = read_status(tmp_path)
        (shown,) = status["progress"]["stages"]
        assert shown.pop("moved") == 1_800_000_000.0
        assert shown == {"name": "sample", "done": 48, "total": 64, "unit": "images"}
        assert status["cluster"] == {"actors": [actor], "last_fault": {"time": 5.0, "text": "sampler 0 died"}}
        clock.now = 8.0
        progress.epoch_done({})
        assert (status["run_id"], status["status"]) == ("abc", "running")
        assert read_status(tmp_path)["progress"] == {
            "epoch": 2,
            "epochs": 4,
            "seconds_per_epoch": 8.0,
            "seconds_left": 16.0,
            "paced_at": 1_800_000_008.0,
            "stages": [],
        }


def test_the_heart_beats_during_a_long_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beats = threading.Event()
    update = console.update_status

    def updated(run_dir: Path, **fields: Any) -> None:
        update(run_dir, **fields)
        if fields["progress"]["stages"]:
            beats.set()

    monkeypatch.setattr(console, "HEARTBEAT_SECONDS", 0.01)
    monkeypatch.setattr(console, "update_status", updated)
    start_status(tmp_path, status="running")
    with Progress(1, 0, tmp_path, enabled=False) as progress, progress.stage("sample", 2):
        assert beats.wait(60)
    assert read_status(tmp_path)["progress"]["stages"] == []


def test_a_slow_heartbeat_puts_no_older_state_in_place_of_a_newer_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has looked at the progress and is about to write it when an epoch ends."""
    looked, go_on = threading.Event(), threading.Event()
    start_status(tmp_path, status="running")
    real = console.update_status

    def updated(folder: Path, **fields: Any) -> None:
        if threading.current_thread().name == "slow":
            looked.set()
            assert go_on.wait(60)
        real(folder, **fields)

    monkeypatch.setattr(console, "update_status", updated)
    with Progress(2, 0, tmp_path, enabled=False) as progress:
        beat = threading.Thread(target=progress._write_status, name="slow")
        ending = threading.Thread(target=progress.epoch_done, args=({},))
        beat.start()
        assert looked.wait(60)
        ending.start()
        ending.join(0.2)
        go_on.set()
        beat.join()
        ending.join()
        assert read_status(tmp_path)["progress"]["epoch"] == 1


def test_a_status_that_cannot_be_written_costs_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start_status(tmp_path, status="running")

    def full(run_dir: Path, **fields: Any) -> None:
        raise OSError("no space")

    monkeypatch.setattr(console, "update_status", full)
    with Progress(1, 0, tmp_path, enabled=False) as progress:
        progress.epoch_done({})
    assert "the status could not be written: no space" in caplog.text


def test_the_file_is_no_link_that_is_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "progress.log").symlink_to(tmp_path / "mine")
    with pytest.raises(StorageError, match=r"progress\.log: it is a link, which is not followed"), Progress(
        1, run_dir=tmp_path
    ):
        pass
    assert (tmp_path / "mine").read_text() == "mine"


def test_warnings_stay_in_the_log_and_on_standard_error(tmp_path: Path) -> None:
    program = """
import logging, sys
from pathlib import Path
from prdp.tracking.console import Progress
with Progress(2, run_dir=Path(sys.argv[1]), enabled=False) as progress:
    logging.getLogger("prdp.learners").warning("no gradient for %s", "a\\x1b[2Jb")
    progress._file = open("/dev/full", "w", buffering=1)
    logging.getLogger("prdp").warning("second")
logging.getLogger("prdp").warning("third")
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    lines = (tmp_path / "progress.log").read_text().splitlines()
    assert [line.split("  ", 1)[1] for line in lines] == ["WARNING no gradient for a\\x1b[2Jb"]
    shown = [line for line in done.stderr.splitlines() if "progress.log could not be written" not in line]
    assert [line.partition(" ")[0] for line in shown] == ["no", "second", "third"]
    assert len(done.stderr.splitlines()) == 4
