"""`prdp status`: a job in full, several in a line each, and folders that hold none."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from prdp.cli import main
from prdp.commands.status import told
from prdp.commands.supervise import LOG_FILE
from prdp.tracking.jsonl import JsonlTracker
from prdp.tracking.status_file import load_status, start_status, update_status

NOW = 1_800_000_100.0
PROGRESS = {
    "epoch": 30,
    "epochs": 120,
    "seconds_per_epoch": 41.25,
    "seconds_left": 3712.0,
    "paced_at": NOW - 12.0,
    "stages": [{"name": "sample", "done": 34, "total": 128, "unit": "images"}],
}
METRICS = {
    "reward/mean": 0.61234,
    "eval/score": 0.64,
    "images_per_second/sample": 3.14159,
    "images_per_second/score": 200.0,
    "images_per_second/learn": 1.9,
    "images_per_second/epoch": 1.2,
}
ACTORS = [
    {"name": "sampler 0", "kind": "sampler", "node": "n1", "pid": 11, "state": "alive", "restarts": 0, "chunks": 57},
    {"name": "reward actor 0", "kind": "reward actor", "node": "n2", "pid": 12, "state": "starting", "restarts": 3},
]
FAULT = {"time": NOW - 185.0, "text": "sampler 1 died: killed by signal 9"}


def status(**changes: Any) -> dict[str, Any]:
    return {
        "folder": "runs/a",
        "status": "running",
        "alive": True,
        "run_id": "abc123",
        "epoch": 30,
        "evaluated_epoch": 20,
        "host": "box",
        "pid": 4711,
        "updated": "2027-01-15T08:01:37+00:00",
        "started": "2027-01-15T07:00:00+00:00",
        "metrics": METRICS,
        "progress": PROGRESS,
        "cluster": {"actors": ACTORS, "last_fault": FAULT},
        **changes,
    }


def test_a_job_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    lines = told(status(), NOW).splitlines()
    assert lines[:6] == [
        "runs/a: running, epoch 30 of 120 (25%), 1h 01m left",
        "  run        abc123, started " + lines[1][-19:],
        "  process    pid 4711 on box: alive, heard of 3s ago",
        "  now        sample 34 of 128 images",
        "  pace       41.2 s per epoch; images per second: sample 3.14, score 200, learn 1.9, epoch 1.2",
        "  reward     0.6123 in training (epoch 30), 0.6400 on held-out prompts (epoch 20)",
    ]
    assert [line.split() for line in lines[7:10]] == [
        ["name", "kind", "node", "pid", "state", "restarts", "chunks", "at", "work"],
        ["sampler", "0", "sampler", "n1", "11", "alive", "0", "57", "-"],
        ["reward", "actor", "0", "reward", "actor", "n2", "12", "starting", "3", "?", "-"],
    ]
    assert lines[-1].startswith("  last fault: 2027-01-15 ")
    assert lines[-1].endswith(" (3m 05s ago) sampler 1 died: killed by signal 9")


def test_who_is_silent_is_told_with_the_seconds_and_what_follows() -> None:
    work = {"doing": "sampling epoch 30, prompts 8 to 11", "since": NOW - 200.0, "limit_seconds": 600.0, "silent": True}
    actors = [ACTORS[0] | {"state": "ready"} | work, ACTORS[1] | work | {"silent": False, "limit_seconds": None}]
    stages = [{"name": "sample", "done": 34, "total": 128, "unit": "images", "moved": NOW - 190.0}]
    silent = status(cluster={"actors": actors}, progress={**PROGRESS, "stages": stages})
    text = told(silent, NOW)
    assert text.startswith("runs/a: running, 1 silent, epoch 30 of 120")
    assert "  now        sample 34 of 128 images, nothing new for 3m 10s\n" in text
    assert "  silent     sampler 0 for 3m 20s, replaced after 10m 00s\n" in text
    rows = [line.split() for line in text.splitlines()[-2:]]
    assert rows[0][5:] == ["silent", "0", "57", "sampling", *rows[1][-9:]]
    assert rows[1][-4:] == ["11", "for", "3m", "20s"] and "starting" in rows[1]
    dead = told({**silent, "alive": False}, NOW)
    assert dead.startswith("runs/a: dead, ") and "3m 20s" not in dead


def test_a_dead_job_is_called_so_and_its_clock_stands_still() -> None:
    text = told(status(alive=False), NOW + 9000.0)
    assert text.startswith("runs/a: dead, epoch 30 of 120 (25%), 1h 01m left\n")
    assert "pid 4711 on box: gone, heard of 2h 30m ago" in text
    assert "  now " not in text
    assert told(status(alive=False, status="finished", epoch=120), NOW).startswith(
        "runs/a: finished, epoch 120 of 120 (100%)\n"
    )


@pytest.mark.parametrize(
    "odd",
    [
        {"folder": "f", "alive": False},
        status(progress=[], metrics=3, cluster="x", epoch=None),
        status(cluster={"actors": [3, {}], "last_fault": {"time": "then"}}, progress={"stages": 1, "epochs": 0}),
        status(pid=10**20),
        status(cluster={"last_fault": {"time": 1e300, "text": "x"}}),
        status(cluster={"last_fault": {"time": "NaN", "text": "x"}}),
        status(metrics={"reward/mean": "NaN"}, updated="then", started=None),
    ],
)
def test_whatever_a_status_lacks_is_left_out(odd: dict[str, Any]) -> None:
    assert told(odd, NOW).startswith(f"{odd['folder']}: ")


def test_of_a_folder_as_text_and_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = JsonlTracker(tmp_path, "abc")
    tracker.log({"reward/mean": 0.5, "loss": float("nan")}, 1)
    (tmp_path / LOG_FILE).write_text("2027-01-15 08:00:00 first\n2027-01-15 08:01:00 killed by SIGKILL\n")
    assert main(["status", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert f"{tmp_path}: running, epoch 1\n" in shown
    assert f"pid {os.getpid()} on {socket.gethostname()}: alive" in shown
    assert "  supervisor 2027-01-15 08:01:00 killed by SIGKILL\n" in shown
    assert main(["status", str(tmp_path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out, parse_constant=lambda constant: pytest.fail(constant))
    assert document["metrics"]["reward/mean"] == 0.5 and document["metrics"]["loss"] == "NaN"
    assert (document["alive"], document["folder"], document["run_id"]) == (True, str(tmp_path), "abc")
    tracker.finish("finished")
    assert main(["status", str(tmp_path)]) == 0
    assert f"{tmp_path}: finished, epoch 1\n" in capsys.readouterr().out


def test_several_and_sweeps_get_a_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (0, 2, 10):
        (tmp_path / "sweep" / str(number)).mkdir(parents=True)
        start_status(tmp_path / "sweep" / str(number), status="running", epoch=number)
    update_status(tmp_path / "sweep" / "2", metrics=METRICS, progress=PROGRESS, cluster={"last_fault": FAULT})
    (tmp_path / "alone").mkdir()
    start_status(tmp_path / "alone", status="failed", epoch=7)
    folders = [str(tmp_path / "sweep"), str(tmp_path / "alone")]
    assert main(["status", *folders]) == 0
    lines = [line.removeprefix(f"{tmp_path}/") for line in capsys.readouterr().out.splitlines()]
    assert lines[0].split() == ["folder", "state", "epoch", "left", "reward", "held-out", "last", "fault"]
    assert lines[1].split() == ["sweep/0", "running", "0/?", "?", "-", "-", "-"]
    assert lines[2].split()[:3] == ["sweep/2", "running", "2/120"]
    assert "  0.6123  0.6400 " in lines[2]
    assert lines[2].endswith("sampler 1 died: killed by signal 9")
    assert lines[4].split()[:3] == ["alone", "failed", "7/?"]
    assert main(["status", "--json", *folders]) == 0
    assert [document["epoch"] for document in json.loads(capsys.readouterr().out)] == [0, 2, 10, 7]


def test_folders_without_a_status_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(tmp_path / "nowhere")]) == 2
    assert f"there is no folder {tmp_path / 'nowhere'}" in capsys.readouterr().err
    assert main(["status", str(tmp_path)]) == 2
    assert f"{tmp_path} holds no status.json" in capsys.readouterr().err
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    start_status(tmp_path / "a", status="running", epoch=0)
    (tmp_path / "b" / "status.json").write_text('{"status": "runn')
    assert main(["status", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert "b/status.json is damaged" in captured.err
    assert "/a " in captured.out
    assert load_status(tmp_path / "a")["epoch"] == 0
