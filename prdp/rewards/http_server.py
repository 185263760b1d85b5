"""The HTTP server behind `prdp reward-server`: one reward, for clients that speak `prdp.rewards.wire`."""

from __future__ import annotations

import contextlib
import hmac
import io
import json
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prdp.rewards.base import Reward, identity_of
from prdp.rewards.connections import CONNECTIONS, REQUEST_SECONDS, SOCKET_SECONDS, Arriving, Bodies, Connections
from prdp.rewards.scoring import RewardError, RewardUnavailableError, first_line, root, scored
from prdp.rewards.wire import FORMAT, Limits, WireError, decode_request, encode_answer
from prdp.support.printable import printable

WAITING = 8
"""Whole requests that wait or are scored at a time; one more is told to come back."""


class RewardServer(ThreadingHTTPServer):
    """Serves a reward. One batch is scored at a time, since rewards need not be safe to call from several threads.

    `GET /health` answers {"status": "ok"} to anybody; `GET /identity` and `POST /score` ask for the token, if there is
    one, as `Authorization: Bearer <token>`.

    Who shows the token is served, however many connections others hold; see `prdp.rewards.connections`.

    Args:
        reward: what scores.
        host, port: where to listen; port 0 takes a free one, see `url`.
        token: '' asks for none.
        limits: of a request.

    Raises:
        OSError: the address cannot be used.
    """

    daemon_threads = True
    request_queue_size = CONNECTIONS

    def __init__(self, reward: Reward, host: str, port: int, token: str = "", limits: Limits | None = None) -> None:
        self.reward, self.token, self.limits = reward, token, limits or Limits()
        self.scoring = threading.Lock()
        self.decoding = threading.Lock()
        self.places = threading.BoundedSemaphore(WAITING)
        self.connections = Connections()
        self.bodies = Bodies(WAITING * self.limits.request_bytes)
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, port), _Handler)

    @property
    def url(self) -> str:
        """Where clients find it."""
        host, port = self.server_address[:2]
        return f"http://[{host!s}]:{port}" if ":" in str(host) else f"http://{host!s}:{port}"

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the connection a thread, or turn it away where there are too many already."""
        if self.connections.enter(request, str(client_address[0])):
            try:
                super().process_request(request, client_address)
            except BaseException:
                self.connections.leave(request)
                raise
            return
        with contextlib.suppress(OSError):
            request.settimeout(0)
            request.send(b"HTTP/1.0 503 Busy\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n")
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """One connection, on its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.connections.leave(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle is no fault of the server."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Refused(Exception):
    """An answer other than 200; `headers` go with it."""

    def __init__(self, status: int, reason: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status, self.headers = status, headers or {}


class _Handler(BaseHTTPRequestHandler):
    """One connection with one request."""

    server: RewardServer
    server_version = "prdp-reward-server"
    sys_version = ""
    timeout = SOCKET_SECONDS

    def setup(self) -> None:
        """Read the request against the clock."""
        super().setup()
        self.rfile.close()
        self._arriving = Arriving(self.connection)
        self.rfile = io.BufferedReader(self._arriving)

    def do_GET(self) -> None:
        """/health and /identity."""
        if self.path == "/health":
            self._send(200, {"status": "ok"})
            return
        try:
            self._check_token()
            if self.path == "/score":
                raise _Refused(405, "/score takes POST")
            if self.path != "/identity":
                raise _Refused(404, "there are /health, /identity and /score")
            limits = self.server.limits
            self._send(
                200,
                {
                    "format": FORMAT,
                    **identity_of(self.server.reward),
                    "limits": {"request_bytes": limits.request_bytes, "images": limits.images},
                },
            )
        except _Refused as refused:
            self._refuse(refused)

    def do_POST(self) -> None:
        """/score."""
        try:
            self._check_token()
            if self.path != "/score":
                raise _Refused(405 if self.path in ("/health", "/identity") else 404, "only /score takes POST")
            body = self._body()
            if not self.server.places.acquire(blocking=False):
                raise _Refused(503, f"{WAITING} requests are being worked on", {"Retry-After": "1"})
            try:
                answer = self._scored(body)
            finally:
                self.server.places.release()
            self._send(200, answer)
        except _Refused as refused:
            self._refuse(refused)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class refuses, such as a broken request line or an unknown method, in our form."""
        self._refuse(_Refused(405 if code == 501 else code, message or "not a request"))

    def log_message(self, format: str, *arguments: Any) -> None:
        """One line without headers, where the token stands, and without what a terminal would act on."""
        print(f"{self.address_string()} {printable(format % arguments)}", file=sys.stderr, flush=True)

    def _check_token(self) -> None:
        """Let the client in, or refuse it before anything of its body is read."""
        shown = self.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if self.server.token and not hmac.compare_digest(shown, f"Bearer {self.server.token}".encode()):
            raise _Refused(401, "a token is needed", {"WWW-Authenticate": "Bearer"})
        self.server.connections.let_in(self.request)

    def _body(self) -> bytes:
        kind = self.headers.get_content_type()
        if kind != "application/json":
            raise _Refused(415, f"Content-Type is {kind}, expected application/json")
        coding = self.headers.get("Content-Encoding", "identity").strip().lower()
        if coding != "identity":
            raise _Refused(415, "Content-Encoding: only bodies that are not compressed are taken")
        lengths = self.headers.get_all("Content-Length") or []
        if "Transfer-Encoding" in self.headers or not lengths:
            raise _Refused(411, "a Content-Length is needed, and no Transfer-Encoding")
        if len(lengths) > 1 or not (lengths[0].isascii() and lengths[0].isdigit()):
            raise _Refused(400, "Content-Length is no number")
        limit = self.server.limits.request_bytes
        if len(lengths[0]) > 18 or int(lengths[0]) > limit:
            raise _Refused(413, f"the body has {lengths[0][:18]} bytes, at most {limit} are taken")
        bodies, host = self.server.bodies, str(self.client_address[0])
        try:
            self._arriving.expect(int(lengths[0]), lambda size: bodies.arrived(self.connection, host, size))
            body = self.rfile.read(int(lengths[0]))
        except TimeoutError:
            raise _Refused(
                408, f"nothing came for {SOCKET_SECONDS:g} s, or not all within {REQUEST_SECONDS:g} s"
            ) from None
        except BlockingIOError:
            raise _Refused(503, "too many bytes of other requests are on their way", {"Retry-After": "1"}) from None
        finally:
            bodies.leave(self.connection)
        if len(body) < int(lengths[0]):
            raise _Refused(400, f"the body ends after {len(body)} of {lengths[0]} bytes")
        return body

    def _scored(self, body: bytes) -> bytes:
        # A batch is decoded while the one before is scored, but no third: memory is bounded by the size of two
        # and the copy that the reward gets.
        with contextlib.ExitStack() as stack:
            with self.server.decoding:
                images, prompts, metadata = self._decoded(body)
                stack.enter_context(self.server.scoring)
            reward = self.server.reward
            try:
                rewards, sub_scores = scored(reward, images, prompts, metadata)
            except RewardUnavailableError as error:
                print(printable(str(error), lines=True), file=sys.stderr, flush=True)
                raise _Refused(503, first_line(error), {"Retry-After": "1"}) from error
            except RewardError as error:
                if isinstance(root(error), ValueError):
                    raise _Refused(422, f"reward '{reward.name}' refuses: {first_line(error.__cause__)}") from error
                print(printable(str(error), lines=True), file=sys.stderr, flush=True)
                raise _Refused(500, first_line(error)) from error
        return encode_answer(identity_of(reward), rewards, sub_scores)

    def _decoded(self, body: bytes) -> tuple[Any, list[str], list[dict[str, Any]]]:
        try:
            return decode_request(body, self.server.limits)
        except WireError as error:
            raise _Refused(400, str(error)) from None
        except MemoryError:
            raise _Refused(413, "the request does not fit into memory") from None

    def _refuse(self, refused: _Refused) -> None:
        self._send(refused.status, {"error": str(refused)}, refused.headers)

    def _send(self, status: int, content: dict[str, Any] | bytes, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.close_connection = True
        self.connection.settimeout(SOCKET_SECONDS)
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Connection": "close", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
