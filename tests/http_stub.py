"""A server on loopback that answers by a function, and remembers what it was asked."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from typing import Any, NamedTuple


class Request(NamedTuple):
    """What a client sent: a GET has no body."""

    path: str
    headers: Mapping[str, str]
    body: bytes


Answer = Callable[[Request], tuple[int, bytes]]
"""Status and body."""


@contextlib.contextmanager
def running(server: HTTPServer) -> Iterator[str]:
    """Serve on a thread; the URL on loopback."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def answering(answer: Answer) -> Iterator[tuple[str, list[Request]]]:
    """URL of a server, and the requests that it got, in the order in which they came."""
    asked: list[Request] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            request = Request(self.path, dict(self.headers), body)
            asked.append(request)
            status, content = answer(request)
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST

        def log_message(self, *_: Any) -> None:
            pass

    with running(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as url:
        yield url, asked
