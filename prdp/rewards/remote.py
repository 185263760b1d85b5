"""A reward that another process or machine scores, over HTTP; `prdp reward-server` is the other end."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from prdp.rewards.base import checked_scores
from prdp.rewards.wire import ENCODINGS, FORMAT, MIB, WireError, decode_answer, decode_identity, encode_request
from prdp.support.arguments import check_argument
from prdp.support.http_client import MAX_BACKOFF_SECONDS, HttpServer, error_of
from prdp.types import Float64, UInt8


class RemoteReward:
    """Sends batches of images to a reward server; name and version are the server's.

    Args:
        url: of the server, such as 'http://127.0.0.1:8080'; a path is put before '/score'.
        token_variable: environment variable that holds the server's token; where it is not set, none is sent.
        batch_size: images per request; a request beyond a size limit, this end's or the server's, is split further.
        timeout_seconds: for each attempt at a request, from connecting to the last byte of the answer.
        retries: further attempts at a request that met a network error, a time-out or an answer in `RETRIED`
            of `prdp.support.http_client`.
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
        check_argument("batch_size", batch_size, batch_size >= 1, "at least 1")
        check_argument("max_request_mib", max_request_mib, 0 < max_request_mib < math.inf, "above 0")
        check_argument("encoding", encoding, encoding in ENCODINGS, f"one of {', '.join(ENCODINGS)}")
        refused = "that of the server, where the reward is scored"
        self._server = HttpServer(url, token_variable, timeout_seconds, retries, backoff_seconds, refused)
        self._batch_size, self._encoding = batch_size, encoding
        self.waits_seconds: float = (retries + 1) * timeout_seconds + retries * MAX_BACKOFF_SECONDS
        identity = _identity(self._server)
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
        check_argument("retries", retries, retries >= 0, "at least 0")
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


def _identity(server: HttpServer) -> dict[str, Any]:
    """Name, version and limits, as `GET /identity` tells them."""
    body = server.ask("GET", "/identity")
    try:
        return decode_identity(body)
    except WireError as error:
        said = f"{error}; it says {error_of(body)}"
        raise ValueError(f"{server.url}/identity is not that of a reward server of format {FORMAT}: {said}") from None
