"""The status of a run: whole, of one process, and honest about whether that process lives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prdp.tracking.status_file import is_alive, load_status, read_status, start_status, this_process, update_status


def test_fields_are_replaced_and_a_new_process_begins_anew(tmp_path: Path) -> None:
    update_status(tmp_path, epoch=3)
    assert not (tmp_path / "status.json").exists()
    start_status(tmp_path, status="running", epoch=0)
    update_status(tmp_path, epoch=1, loss=float("nan"))
    status = read_status(tmp_path)
    assert (status["status"], status["epoch"], status["pid"]) == ("running", 1, os.getpid())
    assert status["loss"] != status["loss"]
    start_status(tmp_path, status="running")
    assert "epoch" not in read_status(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b'{"epoch": 1', "is damaged"), (b"\xff", "is damaged"), (b"[1]", "holds a list"), (b"[" * 100_000, "is damaged")],
)
def test_damage_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "status.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"status\.json .*{message}"):
        load_status(tmp_path)
    assert read_status(tmp_path) == {}


def test_a_process_lives_until_it_is_killed() -> None:
    word = "from prdp.tracking.status_file import this_process; import json, sys;"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{word} print(json.dumps(this_process()), flush=True); sys.stdin.read()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stdin is not None
    status = json.loads(process.stdout.readline())
    now = time.time()
    assert is_alive(status, now)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not is_alive(status, now)  # dead, though its parent has not noticed
    process.wait()
    process.stdout.close()
    process.stdin.close()
    assert not is_alive(status, now)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system does not tell when a process started")
def test_another_process_of_the_same_number_is_not_the_run() -> None:
    status = this_process()
    assert is_alive(status, 0.0)
    assert not is_alive({**status, "process_start": status["process_start"] - 1}, 0.0)


@pytest.mark.parametrize(("age", "alive"), [(5.0, True), (59.0, True), (61.0, False)])
def test_of_another_machine_the_last_word_tells(age: float, alive: bool) -> None:
    status = {"host": "elsewhere.invalid", "pid": 1, "updated": "2026-01-01T00:00:00+00:00"}
    assert is_alive(status, 1767225600.0 + age) is alive
    assert not is_alive({"host": "elsewhere.invalid", "pid": 1}, 0.0)


def test_what_is_no_file_of_that_size_is_not_read(tmp_path: Path) -> None:
    status = tmp_path / "status.json"
    os.mkfifo(status)
    with pytest.raises(ValueError, match="is damaged: it is no plain file"):
        load_status(tmp_path)
    status.unlink()
    status.symlink_to("/dev/zero")
    assert read_status(tmp_path) == {}
