"""A learner's ranks as processes of this machine, which end with this one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from multiprocessing.connection import Connection, Pipe
from multiprocessing.reduction import ForkingPickler
from typing import Any

from prdp.cluster.environment import python_path
from prdp.cluster.rank_host import RankHost
from prdp.cluster.remote_ranks import RankFactory, RemoteRanks, StillWaitingError
from prdp.cluster.threads import PASSIVE_WAITING, thread_environment
from prdp.config import ClusterConfig
from prdp.support.rank_errors import RankLostError

_HOST = "127.0.0.1"
_END_SECONDS = 5.0
_PROGRAM = "import sys; from prdp.cluster.rank_processes import serve; serve(*map(int, sys.argv[1:]))"


class RankProcesses(RemoteRanks):
    """See `RemoteRanks`."""

    def __init__(self, config: ClusterConfig, factories: Sequence[RankFactory], backend: str) -> None:
        super().__init__(config, factories, backend, _HOST)
        self._processes: dict[int, _Process] = {}
        self.start_all()

    def start(self, number: int) -> None:
        self._processes[number] = _Process(number, self.threads)

    def send(self, number: int, method: str, arguments: tuple[Any, ...]) -> _WaitingProcess:
        return _WaitingProcess(self._processes[number].send(method, arguments), number, self)

    def kill(self, number: int) -> None:
        process = self._processes.get(number)
        if process is not None:
            process.kill()

    def close(self) -> None:
        self.leave()
        for process in self._processes.values():
            process.let_go()
        for process in self._processes.values():
            process.end()
        self._processes = {}

    @property
    def process_ids(self) -> dict[int, int]:
        """Rank -> process id."""
        return {number: process.pid for number, process in self._processes.items()}


class _WaitingProcess:
    def __init__(self, future: Future[Any], number: int, ranks: RankProcesses) -> None:
        self._future, self._number, self._ranks = future, number, ranks

    def wait(self, seconds: float) -> Any:
        try:
            return self._future.result(max(seconds, 0.0))
        except TimeoutError:
            if self._future.done():
                raise
            raise StillWaitingError from None
        except _ProcessEndError as error:
            raise RankLostError(f"{self._ranks.name(self._number)} died: {error}", self._number) from None


class _ProcessEndError(Exception):
    """A process ended; says how."""


class _Process:
    """One process, its connection, and the answers that it owes, in order."""

    def __init__(self, number: int, threads: int) -> None:
        self._connection, theirs = Pipe()
        environment = {**os.environ, **PASSIVE_WAITING, **thread_environment(threads), "PYTHONPATH": python_path(None)}
        with theirs:
            # A program of its own: what multiprocessing starts would run the main module of this one again.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM, str(theirs.fileno()), str(number), str(threads)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr.fileno() if _has_file(sys.stderr) else subprocess.DEVNULL,
                env=environment,
            )
        self.pid = self._process.pid
        self._owed: deque[Future[Any]] = deque()
        self._lock = threading.Lock()
        self._ended: str | None = None
        self._reader = threading.Thread(target=self._read, name=f"prdp learner rank {number}", daemon=True)
        self._reader.start()

    def send(self, method: str, arguments: tuple[Any, ...]) -> Future[Any]:
        """Call a method; the answer."""
        future: Future[Any] = Future()
        with self._lock:
            if self._ended is not None:
                future.set_exception(_ProcessEndError(self._ended))
                return future
            self._owed.append(future)
        # A process that is gone is told of by the reader.
        with contextlib.suppress(OSError):
            self._connection.send((method, arguments))
        return future

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        self._connection.close()

    def let_go(self) -> None:
        """Tell it to end."""
        with contextlib.suppress(OSError):
            self._connection.send(("end", ()))

    def end(self) -> None:
        """End it, if it does not end by itself."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        self.kill()

    def _read(self) -> None:
        """Answers as they come, so that neither side waits for the other to read; the end, when there is one."""
        while True:
            try:
                good, value = self._connection.recv()
            except (EOFError, OSError):
                break
            future = self._owed.popleft()
            if good:
                future.set_result(value)
            else:
                future.set_exception(value)
        code = self._process.wait()
        told = f"exit code {code}"
        if code < 0:
            told = f"signal {signal.Signals(-code).name}"
        with self._lock:
            self._ended = told
            owed, self._owed = self._owed, deque()
        for future in owed:
            future.set_exception(_ProcessEndError(told))


def serve(descriptor: int, number: int, threads: int) -> None:
    """The process of a rank: does what it is told until it is let go, or the other side is gone."""
    # Ctrl-C goes to all processes of a terminal; the learner's decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection, host = Connection(descriptor), RankHost(f"learner rank {number}", threads, _HOST)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            method, arguments = connection.recv()
            if method == "end":
                break
            try:
                answer = ForkingPickler.dumps((True, host.call(method, *arguments)))
            except Exception as error:  # noqa: BLE001 - it belongs to whoever asked
                answer = ForkingPickler.dumps((False, error))
            del arguments
            connection.send_bytes(answer)
    # There is nothing to save, and libraries take their time to end.
    os._exit(0)


def _has_file(stream: Any) -> bool:
    try:
        return bool(stream.fileno() >= 0)
    except (AttributeError, OSError, ValueError):
        return False
