"""Hostile clients of the reward server: refused in the documented way, in bounded memory and time."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import select
import socket
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from http_rewards import batch, serving
from mutations import mutations

from prdp.rewards import connections
from prdp.rewards.connections import CONNECTIONS
from prdp.rewards.http_server import RewardServer
from prdp.rewards.remote import RemoteReward
from prdp.rewards.wire import FORMAT, Limits, WireError, decode_request, encode_request

LIMITS = Limits(request_bytes=200_000, images=4, decoded_bytes=50_000, values=2000)


class Fixed:
    """Takes any metadata: whatever the server answers besides 200 is the server's."""

    name, version = "fixed", "1"

    def score(self, images: Any, prompts: Any, metadata: Any) -> Any:
        return images.mean((1, 2, 3)), {"part": np.full(len(images), np.nan)}


@pytest.fixture(scope="module")
def server() -> Iterator[RewardServer]:
    with serving(Fixed(), limits=LIMITS) as one:
        yield one


def post(server: RewardServer, body: bytes, **headers: str) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=30)  # type: ignore[arg-type]
    try:
        connection.request("POST", "/score", body, {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        content = answer.read()
        return answer.status, json.loads(content)
    finally:
        connection.close()


REQUESTS = [encode_request(*batch(2), "png"), encode_request(*batch(2), "raw"), encode_request(*batch(1), "png")]


def test_thousands_of_damaged_requests_decode_or_are_refused() -> None:
    refused = 0
    for body in mutations(1, REQUESTS, 4000):
        try:
            images, prompts, metadata = decode_request(body, LIMITS)
        except WireError as error:
            refused += 1
            assert len(str(error)) < 1000
        else:
            assert images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] == 3
            assert len(images) == len(prompts) == len(metadata) <= LIMITS.images
    assert refused > 2500


def test_the_server_refuses_them_without_a_fault_and_serves_the_next(
    server: RewardServer, capfd: pytest.CaptureFixture[str]
) -> None:
    statuses = [post(server, body)[0] for body in mutations(2, REQUESTS, 250)]
    assert set(statuses) <= {200, 400}
    assert statuses.count(400) > len(statuses) / 2
    assert post(server, REQUESTS[0])[0] == 200
    assert "Traceback" not in capfd.readouterr().err


def chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


def png(width: int, height: int, *chunks: bytes, pixels: bytes = b"") -> bytes:
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    parts = (chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(pixels)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def bomb(content: bytes, shape: list[int]) -> bytes:
    document = {"format": FORMAT, "shape": shape, "encoding": "png", "images": [base64.b64encode(content).decode()]}
    return json.dumps({**document, "prompts": ["a"], "metadata": [{}]}).encode()


ZEROS = zlib.compress(bytes(50_000_000), 9)
BOMBS: list[tuple[str, Callable[[], bytes]]] = [
    ("declared size", lambda: bomb(png(60_000, 60_000), [1, 8, 9, 3])),
    ("declared shape", lambda: bomb(png(9, 8), [1, 60_000, 60_000, 3])),
    ("more pixels than declared", lambda: bomb(png(9, 8, pixels=bytes(50_000_000)), [1, 8, 9, 3])),
    ("compressed text", lambda: bomb(png(9, 8, chunk(b"zTXt", b"a\0\0" + ZEROS)), [1, 8, 9, 3])),
    ("international text", lambda: bomb(png(9, 8, chunk(b"iTXt", b"a\0\1\0\0\0" + ZEROS)), [1, 8, 9, 3])),
    ("colour profile", lambda: bomb(png(9, 8, chunk(b"iCCP", b"a\0\0" + ZEROS)), [1, 8, 9, 3])),
    ("brackets", lambda: b'{"format": 1, "shape": [' + b"[]," * 60_000 + b"1]}"),
    ("objects", lambda: b'{"format": 1, "metadata": [' + b"{}," * 60_000 + b"{}]}"),
    ("a long number", lambda: b'{"format": ' + b"9" * 190_000 + b"}"),
    ("a long text", lambda: b'{"format": 1, "shape": "' + b"\\u0000" * 30_000 + b'"}'),
]


@pytest.mark.parametrize(("name", "make"), BOMBS, ids=[name for name, _ in BOMBS])
def test_small_bodies_do_not_grow_large(name: str, make: Callable[[], bytes], server: RewardServer) -> None:
    body = make()
    assert len(body) < LIMITS.request_bytes
    tracemalloc.start()
    try:
        with pytest.raises(WireError) if name != "more pixels than declared" else _nothing():
            decode_request(body, LIMITS)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4_000_000, f"{name}: {peak} bytes"
    assert post(server, body)[0] in (200, 400)


class _nothing:
    """No error, or a refusal: what stands behind the last pixel is not looked at."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        return kind is not None and issubclass(kind, WireError)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "x" * 1000, "gzip, identity"])
def test_compressed_bodies_are_refused_unread(server: RewardServer, coding: str) -> None:
    status, answer = post(server, REQUESTS[0], **{"Content-Encoding": coding})
    assert status == 415 and "Content-Encoding" in answer["error"]
    assert post(server, REQUESTS[0], **{"Content-Encoding": "identity"})[0] == 200


def test_what_clients_send_cannot_act_on_the_terminal(server: RewardServer, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_connection(server.server_address[:2], timeout=30) as connection:
        connection.sendall(b"GET /\x1b]0;owned\x07\x9b31m HTTP/1.1\r\n\r\n")
        while connection.recv(65536):
            pass
    err = capfd.readouterr().err
    assert "owned" in err
    assert not set(err) & {"\x1b", "\x07", "\x9b"}


@pytest.mark.parametrize(
    "sent",
    [
        b"POST /score HTT",
        b"POST /score HTTP/1.1\r\nX-Dripping: ",
        b"POST /score HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n{",
    ],
    ids=["request line", "headers", "body"],
)
def test_clients_that_drip_meet_the_end_of_patience(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.5)
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.5)
    with serving(Fixed()) as server, socket.create_connection(server.server_address[:2], timeout=30) as connection:
        connection.sendall(sent)
        while not select.select([connection], [], [], 0.02)[0]:
            connection.sendall(b" ")
        answer = connection.recv(65536)
        assert answer == b"" or b" 408 " in answer
        assert post(server, REQUESTS[0])[0] == 200


def ended(connection: socket.socket) -> bool:
    """Wait for the server to close a connection without a word."""
    return connection.recv(65536) == b""


@pytest.mark.parametrize("sent", [b"", b"POST /score HTTP/1.0\r\nX: "], ids=["silent", "half a header"])
def test_strangers_who_hold_connections_keep_nobody_out(sent: bytes) -> None:
    """From the client's own address, and long before anybody's time is up."""
    with serving(Fixed(), "secret") as server, contextlib.ExitStack() as stack:
        held = []
        for _ in range(CONNECTIONS + 6):
            held.append(stack.enter_context(socket.create_connection(server.server_address[:2], timeout=30)))
            held[-1].sendall(sent)
        stack.enter_context(pytest.MonkeyPatch.context()).setenv("PRDP_REWARD_TOKEN", "secret")
        client = RemoteReward(server.url, retries=0)
        assert client.score(*batch(2))[0].shape == (2,)
        assert all(ended(connection) for connection in held[:6])


def test_a_stranger_has_seconds_for_its_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.05)
    with serving(Fixed()) as server, socket.create_connection(server.server_address[:2], timeout=30) as connection:
        assert ended(connection)


def test_headers_are_bounded_altogether(server: RewardServer) -> None:
    address = server.server_address[:2]
    with socket.create_connection(address, timeout=30) as connection, contextlib.suppress(OSError):
        connection.sendall(b"GET /health HTTP/1.0\r\n" + (b"X: " + b"x" * 60_000 + b"\r\n") * 90 + b"\r\n")
        assert b" 200 " not in connection.recv(65536)
    assert post(server, REQUESTS[0])[0] == 200


class Line:
    """Stands for a socket; tells whether it was ended."""

    def __init__(self) -> None:
        self.ended = False

    def shutdown(self, how: int) -> None:
        self.ended = True


def test_a_place_is_taken_from_the_oldest_stranger_of_the_busiest_address() -> None:
    places: Any = connections.Connections()
    alone, member, *crowd = (Line() for _ in range(CONNECTIONS))
    assert places.enter(alone, "192.0.2.1")
    assert places.enter(member, "2001:db8::1")
    places.let_in(member)
    for number, line in enumerate(crowd):
        assert places.enter(line, f"2001:db8::{number + 2:x}")  # a machine may have any of these
    assert places.enter(Line(), "192.0.2.9")
    assert [line.ended for line in (alone, member, *crowd)] == [False, False, True, *[False] * (len(crowd) - 1)]
    places.leave(crowd[1])
    assert places.enter(Line(), "192.0.2.9")
    assert not crowd[2].ended


def test_connections_that_were_let_in_keep_their_places_and_one_more_is_told_to_come_back() -> None:
    with serving(Fixed()) as server:
        held: list[Any] = [Line() for _ in range(CONNECTIONS)]
        for line in held:
            assert server.connections.enter(line, "192.0.2.1")
            server.connections.let_in(line)
        with socket.create_connection(server.server_address[:2], timeout=30) as further:
            assert b" 503 " in further.recv(65536)
        server.connections.leave(held[0])
        assert post(server, REQUESTS[0])[0] == 200
        assert not any(line.ended for line in held)
