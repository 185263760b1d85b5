"""The JSONL log: strict, immediate, and honest after a crash."""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic_run import strict_lines

from prdp.support.storage import StorageError
from prdp.tracking.jsonl import METRICS_FILE, JsonlTracker, choose_run_id, read_metrics
from prdp.tracking.status_file import read_status, start_status


def test_lines_are_strict_json_and_come_back_with_nan_and_infinities(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path)
    tracker.log({"loss": math.nan, "a": math.inf, "b": -math.inf, "c": np.float32(0.5), "d": np.int64(3)}, 4)  # type: ignore[dict-item]
    raw = strict_lines(tmp_path / METRICS_FILE)  # before finish: the line is there when log returns
    assert raw[0]["loss"] == "NaN" and raw[0]["d"] == 3 and isinstance(raw[0]["d"], int)
    (row,) = read_metrics(tmp_path)
    assert math.isnan(row["loss"]) and row["a"] == math.inf and row["b"] == -math.inf and row["c"] == 0.5
    assert row["epoch"] == 4 and row["wall_seconds"] >= 0
    tracker.finish("finished")


def test_a_metric_that_is_no_number_is_named(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path)
    with pytest.raises(TypeError, match=r"'loss' is \[1\] \(list\)"):
        tracker.log({"loss": [1]}, 0)  # type: ignore[dict-item]
    tracker.finish("failed")


def test_a_half_written_last_line_is_left_out_and_a_damaged_one_before_it_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / METRICS_FILE
    path.write_text('{"epoch": 0, "loss": 1.0}\n{"epoch": 1, "loss": 2.0}\n{"epoch": 2, "lo')
    assert [row["epoch"] for row in read_metrics(tmp_path)] == [0, 1]
    path.write_bytes(b'{"epoch": 0}\n{"epoch": 1, "name": "\xc3')  # cut inside a character
    assert [row["epoch"] for row in read_metrics(tmp_path)] == [0]
    path.write_text('{"epoch": 0}\n{"ep\n{"epoch": 2}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl line 2 is damaged"):
        read_metrics(tmp_path)


def test_resume_drops_what_will_run_again(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path)
    for epoch in range(6):
        tracker.log({"loss": float(epoch)}, epoch)
    tracker.finish("interrupted")
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"epoch": 6, "lo')

    resumed = JsonlTracker(tmp_path, resumed_epoch=3)
    resumed.log({"loss": 40.0}, 4)
    resumed.finish("finished")
    assert [row["loss"] for row in read_metrics(tmp_path)] == [0.0, 1.0, 2.0, 3.0, 40.0]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [METRICS_FILE, "status.json"]


def test_a_run_keeps_its_id_when_it_resumes(tmp_path: Path) -> None:
    first = choose_run_id(tmp_path, None)
    JsonlTracker(tmp_path, first).finish("interrupted")
    assert choose_run_id(tmp_path, 3) == first
    assert choose_run_id(tmp_path, None) == first  # it ended before its first checkpoint, and starts over
    JsonlTracker(tmp_path, first).finish("finished")
    assert choose_run_id(tmp_path, None) not in ("", first)
    assert choose_run_id(tmp_path / "elsewhere", 3)
    start_status(tmp_path, status="running", run_id="../../up")
    assert choose_run_id(tmp_path, 3).isalnum()  # it becomes the name of a file


def test_wall_seconds_go_on_after_a_resume(tmp_path: Path) -> None:
    (tmp_path / METRICS_FILE).write_text('{"epoch": 0, "wall_seconds": 1000.0}\n{"epoch": 1, "wall_seconds": 2000.0}\n')
    tracker = JsonlTracker(tmp_path, resumed_epoch=0)
    tracker.log({"loss": 0.0}, 1)
    tracker.finish("finished")
    assert 1000 <= read_metrics(tmp_path)[-1]["wall_seconds"] < 2000


def test_a_fresh_run_keeps_an_older_log_aside(tmp_path: Path) -> None:
    for number in range(3):
        tracker = JsonlTracker(tmp_path)
        tracker.log({"number": number}, 0)
        tracker.finish("finished")
    assert read_metrics(tmp_path)[0]["number"] == 2
    assert strict_lines(tmp_path / "metrics.jsonl.1")[0]["number"] == 0
    assert strict_lines(tmp_path / "metrics.jsonl.2")[0]["number"] == 1


def test_a_full_disk_is_an_error_that_names_the_log_and_leaves_no_half_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = JsonlTracker(tmp_path)
    tracker.log({"loss": 1.0}, 1)
    before, write = (tmp_path / "metrics.jsonl").read_bytes(), os.write

    def full(descriptor: int, content: Any) -> int:
        write(descriptor, bytes(content)[:5])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(StorageError, match=r"could not write .*metrics\.jsonl: No space left on device"):
            tracker.log({"loss": 2.0}, 2)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    tracker.log({"loss": 2.0}, 2)
    assert [row["loss"] for row in read_metrics(tmp_path)] == [1.0, 2.0]


def test_links_are_not_followed(tmp_path: Path) -> None:
    """One that leads to a file is kept aside, one that leads nowhere makes none."""
    (tmp_path / "mine").write_text("mine\n")
    log = tmp_path / "metrics.jsonl"
    log.symlink_to(tmp_path / "mine")
    JsonlTracker(tmp_path).log({"loss": 1.0}, 1)
    assert (tmp_path / "mine").read_text() == "mine\n"
    log.unlink()
    log.symlink_to(tmp_path / "none")
    with pytest.raises(StorageError, match=r"metrics\.jsonl: it is a link, which is not followed"):
        JsonlTracker(tmp_path)
    assert not (tmp_path / "none").exists()


def test_status_says_how_the_run_stands(tmp_path: Path) -> None:
    assert read_status(tmp_path) == {}
    tracker = JsonlTracker(tmp_path, run_id="abc")
    assert read_status(tmp_path)["status"] == "running"
    tracker.log({"loss": 1.0}, 6)
    tracker.finish("failed")
    status = read_status(tmp_path)
    assert (status["status"], status["run_id"], status["epoch"]) == ("failed", "abc", 6)


def test_the_status_holds_the_latest_of_every_number_also_after_a_resume(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path)
    tracker.log({"eval/score": 0.5}, 0)
    tracker.log({"reward/mean": 0.6, "loss": math.nan}, 1)
    tracker.log({"reward/mean": 0.7}, 2)
    assert read_status(tmp_path)["metrics"]["reward/mean"] == 0.7
    tracker.finish("interrupted")
    JsonlTracker(tmp_path, resumed_epoch=1).finish("interrupted")
    status = read_status(tmp_path)
    assert (status["evaluated_epoch"], status["metrics"]["eval/score"]) == (0, 0.5)
    assert status["metrics"]["reward/mean"] == 0.6 and math.isnan(status["metrics"]["loss"])
