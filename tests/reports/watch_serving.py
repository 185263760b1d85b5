"""The server of `prdp watch` on a thread of the tests."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from prdp.commands.watch import listening_socket
from prdp.configuration.secret_values import without_secrets
from prdp.reports.watch.watched_runs import WatchedRuns

TOKEN = "a-token-of-the-tests"


@contextlib.contextmanager
def served(folders: Sequence[Path], **options: Any) -> Iterator[tuple[int, Any]]:
    """(port, `uvicorn.Server`) of a page about some folders, which looks at them ten times a second."""
    from prdp.reports.watch.watch_server import serve

    servers: list[Any] = []
    begun = threading.Event()

    def started(server: Any) -> None:
        servers.append(server)
        begun.set()

    with listening_socket("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        keys = {"every": 0.1, "started": started, **options}
        thread = threading.Thread(
            target=serve, args=(WatchedRuns(folders, without_secrets), listening, TOKEN), kwargs=keys
        )
        thread.start()
        begun.wait()
        try:
            yield port, servers[0]
        finally:
            servers[0].should_exit = True
            thread.join()
