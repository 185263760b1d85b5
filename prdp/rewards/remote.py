"""A reward that another process or machine scores, over HTTP; `prdp reward-server` is the other end."""

from __future__ import annotations

import contextlib
import http.client
import logging
import math
import os
import random
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from prdp.rewards.base import checked_scores
from prdp.rewards.wire import (
    ENCODINGS,
    FORMAT,
    MIB,
    WireError,
    decode_answer,
    decode_identity,
    encode_request,
    error_of,
)
from prdp.types import Float64, UInt8

RETRIED = (408, 425, 429, 502, 503, 504)
"""Answers that may be others in a moment; network errors and time-outs are retried too, a reward's own errors not."""
MAX_BACKOFF_SECONDS = 30.0

_MAX_ANSWER_BYTES = 16 * MIB
_PIECE = 2**16
_LOCAL = ("127.0.0.1", "::1", "localhost")
_log = logging.getLogger(__name__)


class NoAnswerError(OSError, ValueError):
    """A server that gave no answer, in all attempts; it may in a moment."""


class RemoteReward:
    """Sends batches of images to a reward server; name and version are the server's.

    Args:
        url: of the server, such as 'http://127.0.0.1:8080'; a path is put before '/score'.
        token_variable: environment variable that holds the server's token; where it is not set, none is sent.
        batch_size: images per request; a request beyond a size limit, this end's or the server's, is split further.
        timeout_seconds: for each attempt at a request, from connecting to the last byte of the answer.
        retries: further attempts at a request that met a network error, a time-out or an answer in `RETRIED`.
        backoff_seconds: pause before the first further attempt; doubles with each, cut to a random part of it.
        max_request_mib: size limit of a request's body in MiB.
        encoding: of images in a request: 'png' is smaller, 'raw' faster; both exact.

    Raises:
        ValueError: an argument that cannot be used, a server that cannot be reached, that refuses the token, or that is
            no reward server.
    """

    retries_itself = True

    def __init__(
        self,
        url: str,
        token_variable: str | None = "PRDP_REWARD_TOKEN",
        batch_size: int = 16,
        timeout_seconds: float = 60.0,
        retries: int = 5,
        backoff_seconds: float = 0.5,
        max_request_mib: float = 64.0,
        encoding: str = "png",
    ) -> None:
        _check("batch_size", batch_size, batch_size >= 1, "at least 1")
        _check("timeout_seconds", timeout_seconds, 0 < timeout_seconds < math.inf, "above 0")
        _check("retries", retries, retries >= 0, "at least 0")
        _check("backoff_seconds", backoff_seconds, 0 <= backoff_seconds < math.inf, "at least 0")
        _check("max_request_mib", max_request_mib, 0 < max_request_mib < math.inf, "above 0")
        _check("encoding", encoding, encoding in ENCODINGS, f"one of {', '.join(ENCODINGS)}")
        self._server = _Server(url, token_variable, timeout_seconds, retries, backoff_seconds)
        self._batch_size, self._encoding = batch_size, encoding
        self.waits_seconds: float = (retries + 1) * timeout_seconds + retries * MAX_BACKOFF_SECONDS
        identity = self._server.identity()
        self.name: str = identity["name"]
        self.version: str = identity["version"]
        limits = identity["limits"]
        self._request_bytes = min(int(max_request_mib * MIB), limits.get("request_bytes", math.inf))
        self._batch_size = min(batch_size, limits.get("images", batch_size))
        self._identity = {"name": self.name, "version": self.version}
        if "terms" in identity:
            self._identity["terms"] = identity["terms"]

    @classmethod
    def check(cls, url: str, retries: int = 5, **arguments: Any) -> None:
        """Check the arguments and ask the server, once, who it is; raises ValueError as the constructor does."""
        _check("retries", retries, retries >= 0, "at least 0")
        cls(url, retries=0, **arguments)

    def identity(self) -> dict[str, Any]:
        """What the server says about its reward."""
        return dict(self._identity)

    def score(
        self, images: UInt8, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> tuple[Float64, dict[str, Float64]]:
        """Rewards float64 [B] and sub-scores of uint8 images [B, H, W, 3]; metadata have to fit into JSON.

        Raises:
            ValueError: the server cannot be reached, refuses the request, or is another reward than at the start.
        """
        starts = range(0, len(images), self._batch_size)
        batches = [slice(start, start + self._batch_size) for start in starts]
        answers = [answer for part in batches for answer in self._answers(images[part], prompts[part], metadata[part])]
        names = {frozenset(parts) for _, parts in answers}
        if len(names) > 1:
            raise ValueError(f"{self._server.url} answers some images by other sub-scores than others")
        return np.concatenate([rewards for rewards, _ in answers]), {
            name: np.concatenate([parts[name] for _, parts in answers]) for name in answers[0][1]
        }

    def _answers(
        self, images: UInt8, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> Iterator[tuple[Float64, dict[str, Float64]]]:
        """The answers to one request, or to several where one would be too large, in order."""
        body = encode_request(images, prompts, metadata, self._encoding)
        if len(body) > self._request_bytes:
            if len(images) == 1:
                raise ValueError(
                    f"an image of {images.shape[1]} x {images.shape[2]} makes a request of {len(body)} bytes, and "
                    f"{self._server.url} or max_request_mib allow {self._request_bytes:.0f}"
                )
            half = len(images) // 2
            for part in (slice(half), slice(half, None)):
                yield from self._answers(images[part], prompts[part], metadata[part])
            return
        try:
            name, version, rewards, sub_scores = decode_answer(self._server.ask("POST", "/score", body))
        except WireError as error:
            raise ValueError(f"{self._server.url}/score: {error}") from None
        if (name, version) != (self.name, self.version):
            raise ValueError(
                f"{self._server.url} now scores by '{name}' version '{version}'; the run began with '{self.name}' "
                f"version '{self.version}'"
            )
        composite = "terms" in self._identity
        yield checked_scores(
            f"reward '{self.name}'", (rewards, sub_scores), len(images), self._server.url, composite
        )


class _Server:
    """One HTTP server; every request on a connection of its own."""

    def __init__(
        self, url: str, token_variable: str | None, timeout_seconds: float, retries: int, backoff_seconds: float
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"url={_without_user(url)}: must be http://host:port or https://host:port")
        if parts.username is not None or parts.password is not None:
            raise ValueError(
                f"url={_without_user(url)}: no user or password in a URL, which is saved with the configuration; the "
                "token comes from the environment variable that token_variable names"
            )
        self.url = url.rstrip("/")
        self._parts, self._path, self._port = parts, parts.path.rstrip("/"), parts.port
        self._token_variable = token_variable
        self._timeout, self._retries, self._backoff = timeout_seconds, retries, backoff_seconds
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        token = os.environ.get(token_variable, "").strip() if token_variable else ""
        if token:
            if not token.isascii() or not token.isprintable():
                raise ValueError(f"the environment variable {token_variable} holds more than printable ASCII")
            self._headers["Authorization"] = f"Bearer {token}"
            if parts.scheme == "http" and parts.hostname not in _LOCAL:
                _log.warning("the token for %s travels unencrypted: use https outside a trusted network", self.url)

    def identity(self) -> dict[str, Any]:
        """Name, version and limits, as `GET /identity` tells them."""
        body = self.ask("GET", "/identity")
        try:
            return decode_identity(body)
        except WireError as error:
            said = f"{error}; it says {error_of(body)}"
            raise ValueError(f"{self.url}/identity is not that of a reward server of format {FORMAT}: {said}") from None

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
                        "that of the server, where the reward is scored"
                    )
                if status not in RETRIED:
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
                if len(answer) > _MAX_ANSWER_BYTES:
                    raise ValueError(f"{self.url}{path} answers with more than {_MAX_ANSWER_BYTES} bytes")
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


def _check(name: str, value: Any, allowed: bool, words: str) -> None:
    if not allowed:
        raise ValueError(f"{name}={value}: must be {words}")


def _without_user(url: str) -> str:
    """The URL as a message may show it."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"
