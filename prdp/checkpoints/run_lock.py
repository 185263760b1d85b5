"""One writer at a time in a run's folder, on one machine and across machines that share a disk.

`run.lock` names the process that writes: {"token", "host", "boot", "space", "pid", "process_start", "started"}. That
process holds the kernel's lock on the file (`flock`, which network disks pass on to their server), and touches the file
every `HEARTBEAT_SECONDS`. The kernel's lock goes with the process, however it dies. A process of another machine counts
as alive while its file was touched within `SILENT_SECONDS`, whether its kernel's lock is seen here or not; where the
disk has no kernel locks, the age of the file decides alone. A writer that lost its lock notices before it writes more.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import stat
import threading
import time
import uuid
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prdp.support.errors import ResumableError, StartError
from prdp.support.storage import TEMPORARY
from prdp.tracking.status_file import HEARTBEAT_SECONDS, SILENT_SECONDS, is_running, this_process

try:
    import fcntl
except ImportError:  # no POSIX system
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = "run.lock"
PATIENCE_SECONDS = 90.0
"""How long a start waits for a writer on another machine or in another container, which may be about to end."""
_POLL_SECONDS = 2.0
_TRIES, _TRY_SECONDS = 200, 0.02
"""For a lock that changes hands at this moment."""
_BUSY = (errno.EAGAIN, errno.EACCES)
_log = logging.getLogger(__name__)
_sleep = time.sleep


class LockedError(StartError):
    """The folder is being written to by another process of this machine; the message names it."""


class LockedElsewhereError(ResumableError):
    """The folder is still being written to from elsewhere after `PATIENCE_SECONDS`; the message names the process."""


class LockLostError(ResumableError):
    """Another process has taken the folder over, or its lock file was removed: this one must not write any more."""


@dataclass(frozen=True)
class Owner:
    """Who writes into a folder.

    Attributes:
        token: of this one hold of the lock.
        host: name of the machine or container.
        boot: id of the running kernel, which containers of one machine share.
        space: in which the pid counts: the pid namespace; pid 1 is there in every container.
        pid, process_start: of the process, as `this_process` tells them.
        started: when it took the lock, in UTC.
    """

    token: str
    host: str
    boot: str
    space: str
    pid: int
    process_start: int | None
    started: str

    @staticmethod
    def this() -> Owner:
        """This process, with a new token."""
        mine = this_process()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return Owner(uuid.uuid4().hex, mine["host"], _boot(), _space(), mine["pid"], mine["process_start"], now)

    @staticmethod
    def read(content: bytes) -> Owner | None:
        """From the content of a lock file; None when it is empty, half-written or of another making."""
        try:
            record: Any = json.loads(content)
            owner = Owner(**record)
        except (ValueError, TypeError, RecursionError):
            return None
        return owner if isinstance(owner.pid, int) and isinstance(owner.token, str) else None

    def content(self) -> bytes:
        """What the lock file holds."""
        return json.dumps(self.__dict__).encode() + b"\n"

    @property
    def is_on_this_kernel(self) -> bool:
        """Whether it runs, or ran, under the kernel of this process."""
        return self.boot == _boot() and self.boot != ""

    @property
    def is_a_neighbour(self) -> bool:
        """Whether its pid means to this process what it means to it."""
        return self.is_on_this_kernel and self.space == _space() and self.host == this_process()["host"]

    @property
    def is_running(self) -> bool:
        """Whether the process of a neighbour runs."""
        return is_running(self.pid, self.process_start)

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host}, since {self.started}"


class RunLock:
    """A held lock; see `hold`. A context manager that releases it."""

    def __init__(self, path: Path, descriptor: int, owner: Owner, made: bool) -> None:
        self.owner = owner
        self._path, self._descriptor, self._made = path, descriptor, made
        self._stop = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="prdp-lock", daemon=True)
        self._heart.start()
        _held.add(self)

    def check(self) -> None:
        """To be asked before anything is written.

        Raises:
            LockLostError: the lock is another's by now, or gone.
        """
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            content = b""
        now = Owner.read(content)
        if now is None or now.token != self.owner.token:
            by = f"was taken over by {now}" if now else f"lost its {LOCK_FILE}"
            raise LockLostError(f"{self._path.parent} {by}: this process writes no more into it")

    def is_held(self) -> bool:
        """Whether it is still this process's."""
        try:
            self.check()
        except LockLostError:
            return False
        return True

    def release(self) -> None:
        """Let go, and remove the lock file, and the folder if it was made for the lock and nothing else came; once."""
        if self._descriptor < 0:
            return
        self._stop.set()
        self._heart.join()
        with contextlib.suppress(LockLostError, OSError):
            self.check()
            self._path.unlink()
            if self._made:
                self._path.parent.rmdir()
        self.close_descriptor()

    def close_descriptor(self) -> None:
        """Also in a forked child, which would keep the kernel's lock when its parent dies."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(self._descriptor)


def hold(folder: Path | str, patience: float = PATIENCE_SECONDS) -> RunLock:
    """Become the one writer of a folder, which is made when missing.

    Args:
        folder: of a run, an evaluation or the like.
        patience: seconds to wait for a writer elsewhere: it ends, falls silent, or goes on.

    Raises:
        LockedError: a process of this machine writes into it.
        LockedElsewhereError: one elsewhere goes on to.
        StartError: the folder or its lock file cannot be written.
    """
    folder = Path(folder)
    made = not os.path.exists(folder)
    waited = 0.0
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            found = _try(folder / LOCK_FILE, made)
        except OSError as error:
            raise StartError(f"{error.filename or folder} cannot be written: {error.strerror or error}") from error
        if isinstance(found, RunLock):
            return found
        message = f"{folder} is being written to by {found}"
        if found.is_a_neighbour:
            raise LockedError(message)
        if waited >= patience:
            raise LockedElsewhereError(f"{message}, after {waited:.0f} s still")
        if not waited:
            _log.warning("%s: waiting up to %.0f s for it to end", message, patience)
        _sleep(_POLL_SECONDS)
        waited += _POLL_SECONDS


_held: weakref.WeakSet[RunLock] = weakref.WeakSet()


def _close_all() -> None:
    for lock in list(_held):
        lock.close_descriptor()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_all)


def _try(path: Path, made: bool) -> RunLock | Owner:
    """The lock, or who has it."""
    for _ in range(_TRIES):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        except OSError as error:
            if path.is_symlink():
                raise OSError(errno.ELOOP, "it is a link, which is not followed; remove it", str(path)) from error
            if path.is_dir():
                raise OSError(errno.EISDIR, "it is a folder, must be a plain file; remove it", str(path)) from error
            raise
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "not a plain file", str(path))
            locked = _kernel_lock(descriptor)
            owner = Owner.read(_content(descriptor))
            orphaned = locked is False and owner is not None and owner.is_a_neighbour and not owner.is_running
            if orphaned:  # by a child that was forked past Python, or just now: its hold on this file tells nothing
                with _claimed(path) as claimed:
                    if claimed and _is_still(path, descriptor) and Owner.read(_content(descriptor)) == owner:
                        path.unlink()
                        continue
            elif owner is not None and (locked is False or _is_alive(owner, path, kernel=locked is True)):
                return owner
            if locked is not False:
                # The claim also keeps out who finds the lock held, the owner dead, and would remove the file.
                with contextlib.nullcontext(True) if locked and owner is None else _claimed(path) as claimed:
                    # In between its owner may have removed it, or another one may have taken it over.
                    if claimed and _is_still(path, descriptor) and Owner.read(_content(descriptor)) == owner:
                        mine = Owner.this()
                        os.ftruncate(descriptor, 0)
                        os.pwrite(descriptor, mine.content(), 0)
                        os.fsync(descriptor)
                        kept, descriptor = descriptor, -1
                        return RunLock(path, kept, mine, made)
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        _sleep(_TRY_SECONDS)
    raise OSError(errno.EBUSY, "held by a process that does not tell its name", str(path))


def _kernel_lock(descriptor: int) -> bool | None:
    """Whether the kernel's lock was got; None where there is none to get."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in _BUSY else None
    return True


def _is_alive(owner: Owner, path: Path, kernel: bool) -> bool:
    """Whether the owner named in a lock file still writes, although its kernel's lock does not keep others out."""
    if owner.is_on_this_kernel and kernel:
        return False
    if owner.is_a_neighbour:
        return owner.is_running
    return _clock(path.parent) - path.stat().st_mtime < SILENT_SECONDS


@contextlib.contextmanager
def _claimed(path: Path) -> Iterator[bool]:
    """Whether this process is the only one to take the file over, or remove it, in the block."""
    claim = path.with_name(f"{TEMPORARY}claim-{path.name}")
    with contextlib.suppress(FileNotFoundError):
        if _clock(path.parent) - claim.stat().st_mtime > SILENT_SECONDS:  # who made it has died
            claim.unlink()
    try:
        os.close(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except FileExistsError:
        yield False
        return
    try:
        yield True
    finally:
        claim.unlink(missing_ok=True)


def _content(descriptor: int) -> bytes:
    return os.pread(descriptor, 65536, 0)


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _clock(folder: Path) -> float:
    """The time by the clock of a folder's disk, which may be another machine's."""
    probe = folder / f"{TEMPORARY}{uuid.uuid4().hex[:8]}-clock"
    descriptor = os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return os.fstat(descriptor).st_mtime
    finally:
        os.close(descriptor)
        probe.unlink(missing_ok=True)


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def _space() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
