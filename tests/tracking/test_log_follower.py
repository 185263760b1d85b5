"""A log that grows, is torn, damaged, written anew and replaced: what is followed is what a reader of the whole has."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
from synthetic_run import make_run, train_metrics

from prdp.reports.report_data import read_run
from prdp.tracking.jsonl import JsonlTracker
from prdp.tracking.log_follower import LogFollower


def test_what_is_followed_is_what_the_report_reads(tmp_path: Path) -> None:
    make_run(tmp_path, epochs=6)
    log = LogFollower(tmp_path / "metrics.jsonl")
    assert log.poll() and not log.poll()
    run = read_run(tmp_path)
    assert log.columns() == run.metrics
    assert (log.wall_seconds, log.last_epoch) == (run.wall_seconds, run.last_epoch)


def test_only_whole_new_lines_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    log = LogFollower(path)
    assert not log.poll() and log.last_epoch is None
    path.write_text("".join(f'{{"epoch": {epoch}, "loss": {epoch}.5}}\n' for epoch in range(10_000)))
    assert log.poll() and log.last_epoch == 9999
    taken: list[int] = []
    monkeypatch.setattr(LogFollower, "_take", lambda self, number, line: taken.append(number))
    with path.open("a") as file:
        file.write('{"epoch": 10000, "lo')
    assert not log.poll() and taken == []
    with path.open("a") as file:
        file.write('ss": 1}\n{"epoch"')
    assert log.poll() and taken == [10_001]


def test_damaged_lines_and_odd_numbers(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    odd = ["[1]", "{", '{"epoch": "3"}', '{"epoch": 2, "loss": "NaN", "note": "x"}', "", '{"epoch": 3, "loss": 1e999}']
    huge = "9" * 400
    path.write_bytes("\n".join([*odd, f'{{"epoch": {huge}}}', '{"epoch": 4, "wall_seconds": "Infinity"}', ""]).encode())
    log = LogFollower(path)
    assert log.poll() and log.damaged == [1, 2, 3, 7]
    epochs, values = log.columns()["loss"]
    assert epochs == [2, 3] and math.isnan(values[0]) and math.isinf(values[1])
    assert log.wall_seconds == 0.0 and log.last_epoch == 4


def test_a_resume_a_new_start_and_a_log_that_is_gone(tmp_path: Path) -> None:
    log = LogFollower(tmp_path / "metrics.jsonl")
    tracker = JsonlTracker(tmp_path, "a")
    for epoch in range(6):
        tracker.log(train_metrics(epoch), epoch)
    assert log.poll() and log.last_epoch == 5
    JsonlTracker(tmp_path, "a", resumed_epoch=3)
    assert log.poll() and log.last_epoch == 3
    JsonlTracker(tmp_path, "b").log({"loss": 1.0}, 0)
    assert log.poll() and log.columns() == {"loss": ([0], [1.0])}
    path = tmp_path / "metrics.jsonl"
    stamp = path.stat()
    path.write_text('{"epoch": 7, "loss": 2.0, "note": "of the same file, longer than it was before"}\n')
    assert path.stat().st_ino == stamp.st_ino and log.poll() and log.columns() == {"loss": ([7], [2.0])}
    content = path.read_bytes()
    path.unlink()
    assert not log.poll() and log.last_epoch == 7, "what was read stays on show"
    os.mkfifo(path)
    with pytest.raises(OSError, match="no plain file"):
        log.poll()
    path.unlink()
    path.write_bytes(content)
    anew = log.anew
    assert log.poll() and log.anew == anew + 1 and log.columns() == {"loss": ([7], [2.0])} and not log.poll()
