"""A client of HTTP servers that speak JSON: time-outs of whole answers, retries with growing pauses, a token."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import math
import os
import random
import socket
import ssl
import threading
import time
from collections.abc import Collection
from urllib.parse import urlsplit

from prdp.support.arguments import check_argument

RETRIED = (408, 425, 429, 502, 503, 504)
"""Answers that may be others in a moment; network errors and time-outs are retried too, a server's own errors not."""
MAX_BACKOFF_SECONDS = 30.0
MAX_ANSWER_BYTES = 16 * 2**20

_MAX_ERROR = 2**16
_PIECE = 2**16
_LOCAL = ("127.0.0.1", "::1", "localhost")
_log = logging.getLogger(__name__)


class NoAnswerError(OSError, ValueError):
    """A server that gave no answer, in all attempts; it may in a moment."""


class HttpServer:
    """One HTTP server that speaks JSON; every request on a connection of its own.

    Args:
        url: of the server, with a path that is put before those of requests, perhaps.
        token_variable: environment variable that holds the token to show; none is shown where it is not set.
        timeout_seconds: for each attempt at a request, from connecting to the last byte of the answer.
        retries: further attempts at a request that met a network error, a time-out or an answer in `retried`.
        backoff_seconds: pause before the first further attempt; doubles with each, cut to a random part of it.
        refused: how a message about a token that is refused ends.
        retried: statuses of answers that may be others in a moment.

    Raises:
        ValueError: a URL of another scheme or with a password, a token that cannot be sent, a number out of range.
    """

    def __init__(
        self,
        url: str,
        token_variable: str | None,
        timeout_seconds: float,
        retries: int,
        backoff_seconds: float,
        refused: str,
        retried: Collection[int] = RETRIED,
    ) -> None:
        check_argument("timeout_seconds", timeout_seconds, 0 < timeout_seconds < math.inf, "above 0")
        check_argument("retries", retries, retries >= 0, "at least 0")
        check_argument("backoff_seconds", backoff_seconds, 0 <= backoff_seconds < math.inf, "at least 0")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"url={_without_user(url)}: must be http://host:port or https://host:port")
        if parts.username is not None or parts.password is not None:
            raise ValueError(
                f"url={_without_user(url)}: no user or password in a URL, which is saved with the configuration; the "
                "secret comes from an environment variable"
            )
        self.url = url.rstrip("/")
        self._parts, self._path, self._port = parts, parts.path.rstrip("/"), parts.port
        self._token_variable, self._refused, self._retried = token_variable, refused, retried
        self._timeout, self._retries, self._backoff = timeout_seconds, retries, backoff_seconds
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        token = os.environ.get(token_variable, "").strip() if token_variable else ""
        if token:
            if not token.isascii() or not token.isprintable():
                raise ValueError(f"the environment variable {token_variable} holds more than printable ASCII")
            self._headers["Authorization"] = f"Bearer {token}"
            if parts.scheme == "http" and parts.hostname not in _LOCAL:
                _log.warning("the token for %s travels unencrypted: use https outside a trusted network", self.url)

    def ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """The body of a successful answer.

        Raises:
            ValueError: no such answer, after the retries where they make sense; names the URL and the reason. A
                `NoAnswerError` where it may come later.
        """
        for attempt in range(self._retries + 1):
            pause = min(MAX_BACKOFF_SECONDS, self._backoff * 2**attempt) * random.uniform(0.5, 1.0)
            try:
                status, answer, retry_after = self._exchange(method, path, body)
            except (OSError, http.client.HTTPException) as error:
                reason = f"{type(error).__name__}: {error}"
            else:
                if status == 200:
                    return answer
                reason = f"HTTP {status}: {error_of(answer)}"
                if status == 401:
                    raise ValueError(
                        f"{self.url}{path} refuses the token: set the environment variable {self._token_variable} to "
                        f"{self._refused}"
                    )
                if status not in self._retried:
                    raise ValueError(f"{self.url}{path} answered {reason}")
                pause = max(pause, min(retry_after, MAX_BACKOFF_SECONDS))
            if attempt < self._retries:
                following = f"attempt {attempt + 2} of {self._retries + 1} follows"
                _log.warning("%s%s: %s; %s", self.url, path, reason, following)
                time.sleep(pause)
        attempts = f"{self._retries + 1} attempts" if self._retries else "one attempt"
        raise NoAnswerError(f"{self.url}{path} gave no answer in {attempts} of {self._timeout:g} s; last: {reason}")

    def _exchange(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes, float]:
        """Status, body and Retry-After in seconds (0 where absent) of one attempt."""
        deadline = time.monotonic() + self._timeout
        host = self._parts.hostname or ""
        connection: http.client.HTTPConnection
        if self._parts.scheme == "https":
            context = ssl.create_default_context()
            connection = http.client.HTTPSConnection(host, self._port, timeout=self._timeout, context=context)
        else:
            connection = http.client.HTTPConnection(host, self._port, timeout=self._timeout)
        expired = threading.Event()
        timer: threading.Timer | None = None
        try:
            connection.connect()
            open_socket = connection.sock

            def expire() -> None:
                # A time-out of the socket's starts anew with each byte; this one does not.
                expired.set()
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(open_socket, socket.SHUT_RDWR)  # past TLS, which may be reading

            timer = threading.Timer(max(deadline - time.monotonic(), 1e-3), expire)
            timer.daemon = True
            timer.start()
            connection.request(method, f"{self._path}{path}", body, self._headers)
            response = connection.getresponse()
            answer = bytearray()
            while piece := response.read1(_PIECE):
                answer += piece
                if len(answer) > MAX_ANSWER_BYTES:
                    raise ValueError(f"{self.url}{path} answers with more than {MAX_ANSWER_BYTES} bytes")
            if response.length:
                raise http.client.IncompleteRead(bytes(answer), response.length)
            if expired.is_set():
                raise TimeoutError
            after = response.headers.get("Retry-After", "")
            seconds = float(after[:9]) if after.isascii() and after.isdigit() else 0.0
            return response.status, bytes(answer), seconds
        except (OSError, http.client.HTTPException):
            if expired.is_set():
                raise TimeoutError(f"no whole answer within {self._timeout:g} s") from None
            raise
        finally:
            if timer is not None:
                timer.cancel()
            connection.close()


def error_of(body: bytes) -> str:
    """The text of {"error": text} or {"error": {"message": text}}, or the start of whatever came instead.

    It is cut short, and fit to stand in a line.
    """
    try:
        document = json.loads(body if len(body) <= _MAX_ERROR else b"")
        error = document["error"]
        text = str(error["message"] if isinstance(error, dict) and "message" in error else error)
    except (ValueError, TypeError, KeyError, RecursionError):
        text = body[:200].decode("utf-8", "replace")
    shown = "".join(one if one.isprintable() else " " for one in text[:500])
    return shown if len(text) <= 500 else f"{shown}..."


def _without_user(url: str) -> str:
    """The URL as a message may show it."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"
