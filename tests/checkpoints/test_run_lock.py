"""One writer at a time, whoever dies, and wherever the other one runs."""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from prdp.checkpoints import run_lock
from prdp.checkpoints.run_lock import LOCK_FILE, LockedElsewhereError, LockedError, LockLostError, Owner, RunLock, hold

pytestmark = pytest.mark.skipif(run_lock.fcntl is None, reason="kernel locks of POSIX")


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses that were asked for; none is made."""
    asked: list[float] = []
    monkeypatch.setattr(run_lock, "_sleep", asked.append)
    return asked


@pytest.fixture(params=["kernel locks", "no kernel locks"])
def disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the disk of the folder supports."""
    if request.param == "no kernel locks":

        def unsupported(*_: Any) -> None:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

        monkeypatch.setattr(run_lock.fcntl, "flock", unsupported)
    return str(request.param)


def left_behind(folder: Path, seconds_ago: float = 0.0, **changes: Any) -> Owner:
    """The lock file of another process, touched so long ago."""
    owner = dataclasses.replace(Owner.this(), **changes)
    folder.mkdir(exist_ok=True)
    (folder / LOCK_FILE).write_bytes(owner.content())
    now = (folder / LOCK_FILE).stat().st_mtime
    os.utime(folder / LOCK_FILE, (now - seconds_ago, now - seconds_ago))
    return owner


ELSEWHERE = {"host": "node-7", "boot": "another", "pid": 1, "process_start": None}
GONE = {"pid": 2**22 + 1, "process_start": 5}


def test_a_second_writer_is_refused_by_name_and_pid(tmp_path: Path, disk: str) -> None:
    with hold(tmp_path / "run") as lock:
        lock.check()
        with pytest.raises(LockedError, match=rf"run is being written to by pid {os.getpid()} on .*, since 20"):
            hold(tmp_path / "run")
        lock.check()
    assert not (tmp_path / "run").exists()
    with hold(tmp_path / "run"):
        (tmp_path / "run" / "file").touch()
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["file"]


def test_the_lock_of_a_dead_neighbour_is_taken_over(tmp_path: Path, disk: str) -> None:
    left_behind(tmp_path / "run", **GONE)
    with hold(tmp_path / "run") as lock:
        lock.check()


def test_a_reused_pid_is_not_taken_for_its_owner(tmp_path: Path, disk: str) -> None:
    left_behind(tmp_path / "run", pid=os.getpid(), process_start=1)
    hold(tmp_path / "run").release()


@pytest.mark.parametrize("content", [b"", b'{"token": ', b"[1]", b"\xff\x00", b'{"token": 3}'])
def test_a_half_written_name_keeps_nobody_out(tmp_path: Path, disk: str, content: bytes) -> None:
    (tmp_path / LOCK_FILE).write_bytes(content)
    with hold(tmp_path) as lock:
        lock.check()


def test_one_elsewhere_that_goes_on_is_waited_for_and_named(tmp_path: Path, disk: str, pauses: list[float]) -> None:
    """Pid 1 is there in every container: it is not looked up here."""
    left_behind(tmp_path / "run", **ELSEWHERE)
    with pytest.raises(LockedElsewhereError, match=r"by pid 1 on node-7, since .*, after 90 s still"):
        hold(tmp_path / "run")
    assert sum(pauses) == 90


def test_one_elsewhere_that_falls_silent_is_followed(
    tmp_path: Path, disk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_behind(tmp_path / "run", **ELSEWHERE)
    monkeypatch.setattr(run_lock, "_sleep", lambda _: left_behind(tmp_path / "run", 61.0, **ELSEWHERE))
    with hold(tmp_path / "run") as lock:
        lock.check()


def test_one_elsewhere_that_ends_is_followed(tmp_path: Path, disk: str, monkeypatch: pytest.MonkeyPatch) -> None:
    left_behind(tmp_path / "run", **ELSEWHERE)
    monkeypatch.setattr(run_lock, "_sleep", lambda _: (tmp_path / "run" / LOCK_FILE).unlink(missing_ok=True))
    hold(tmp_path / "run").release()


def test_another_container_of_this_machine_is_waited_for(tmp_path: Path) -> None:
    """Its lock is the kernel's, but it may be one that is about to end, and its pid means nothing here."""
    with hold(tmp_path) as lock:
        (tmp_path / LOCK_FILE).write_bytes(dataclasses.replace(lock.owner, space="pid:[1]", pid=1).content())
        with pytest.raises(LockedElsewhereError, match="pid 1 on"):
            hold(tmp_path)


@pytest.mark.parametrize("dead", [False, True])
def test_of_many_starts_at_once_one_wins(
    tmp_path: Path, disk: str, dead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo() if disk == "kernel locks" else monkeypatch.setattr(run_lock, "_sleep", threading.Event().wait)
    count, interval = 12, sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for number in range(20):
            folder = tmp_path / str(number)
            if dead:
                left_behind(folder, **GONE)
            barrier = threading.Barrier(count)

            def start(folder: Path = folder, barrier: threading.Barrier = barrier) -> RunLock | None:
                barrier.wait()
                try:
                    return hold(folder)
                except LockedError:
                    return None

            with ThreadPoolExecutor(count) as pool:
                locks = [lock for lock in pool.map(lambda _, start=start: start(), range(count)) if lock is not None]
            assert len(locks) == 1
            locks[0].check()
            locks[0].release()
    finally:
        sys.setswitchinterval(interval)


def test_who_lost_the_lock_writes_no_more(tmp_path: Path) -> None:
    lock = hold(tmp_path)
    other = left_behind(tmp_path, **ELSEWHERE)
    with pytest.raises(LockLostError, match="was taken over by pid 1 on node-7"):
        lock.check()
    lock.release()
    assert Owner.read((tmp_path / LOCK_FILE).read_bytes()) == other
    (tmp_path / LOCK_FILE).unlink()
    with hold(tmp_path) as lock, pytest.raises(LockLostError, match=r"lost its run\.lock"):
        (tmp_path / LOCK_FILE).unlink()
        lock.check()


def test_the_file_is_touched_while_the_lock_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touched, utime = threading.Event(), os.utime

    def noted(*arguments: Any, **keywords: Any) -> None:
        utime(*arguments, **keywords)
        touched.set()

    monkeypatch.setattr(run_lock, "HEARTBEAT_SECONDS", 0.001)
    monkeypatch.setattr(os, "utime", noted)
    with hold(tmp_path):
        utime(tmp_path / LOCK_FILE, (1, 1))
        touched.clear()
        assert touched.wait(60)
        assert (tmp_path / LOCK_FILE).stat().st_mtime > 1


def test_what_is_no_plain_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / LOCK_FILE).symlink_to(tmp_path / "mine")
    with pytest.raises(run_lock.StartError, match=r"run\.lock cannot be written: it is a link, which is not"):
        hold(tmp_path)
    assert (tmp_path / "mine").read_text() == "mine"
    (tmp_path / LOCK_FILE).unlink()
    (tmp_path / LOCK_FILE).mkdir()
    with pytest.raises(run_lock.StartError, match=r"run\.lock cannot be written: it is a folder, must be a plain file"):
        hold(tmp_path)
    (tmp_path / LOCK_FILE).rmdir()
    os.mkfifo(tmp_path / LOCK_FILE)
    with pytest.raises(run_lock.StartError, match="not a plain file"):
        hold(tmp_path)


@pytest.mark.parametrize("place", ["file/run", "x" * 300])
def test_a_folder_that_cannot_be_made_is_a_mistake(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(run_lock.StartError, match=r"cannot be written: (Not a directory|File name too long)"):
        hold(tmp_path / place)


def test_a_kernel_lock_that_outlives_its_owner_keeps_nobody_out(tmp_path: Path) -> None:
    """As of a child that was forked without Python's knowledge."""
    with hold(tmp_path) as orphan:
        (tmp_path / LOCK_FILE).write_bytes(dataclasses.replace(orphan.owner, **GONE).content())
        with hold(tmp_path) as lock:
            lock.check()
            with pytest.raises(LockLostError):
                orphan.check()


HOLDER = """
import os, sys
from prdp.checkpoints.run_lock import hold
lock = hold(sys.argv[1])
if os.fork() == 0:
    sys.stdin.read()
    os._exit(0)
print("held", flush=True)
sys.stdin.read()
"""


def test_sigkill_frees_the_lock_although_a_forked_child_lives_on(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdin is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(LockedError, match=f"pid {process.pid} on"):
        hold(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with hold(tmp_path) as lock:
        lock.check()
    process.stdin.close()
    assert process.stdout.read() == ""  # the child has ended
    process.stdout.close()
