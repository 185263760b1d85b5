"""The reward server: answers, refusals of every kind, and a fuzz that must only ever meet these."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import random
import select
import socket
import threading
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from http_rewards import Exact, batch, serving

from prdp.rewards.connections import Bodies
from prdp.rewards.http_server import WAITING, RewardServer
from prdp.rewards.wire import Limits, decode_request, encode_request

TOKEN = "a-secret-of-the-tests"
LIMITS = Limits(request_bytes=20_000, images=4, decoded_bytes=50_000)


@pytest.fixture(scope="module")
def server() -> Iterator[RewardServer]:
    with serving(Exact(), TOKEN, LIMITS) as one:
        yield one


def ask(
    server: RewardServer,
    method: str = "POST",
    path: str = "/score",
    body: bytes | None = None,
    **headers: str | None,
) -> tuple[int, dict[str, Any]]:
    """Status and JSON of an answer; headers None are left out."""
    sent = {"authorization": f"Bearer {TOKEN}", "content_type": "application/json"} | headers
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=20)  # type: ignore[arg-type]
    try:
        named = {name.replace("_", "-"): value for name, value in sent.items() if value is not None}
        connection.request(method, path, body, named)
        answer = connection.getresponse()
        content = answer.read()
        return answer.status, json.loads(content) if content else {}
    finally:
        connection.close()


def raw(server: RewardServer, sent: bytes) -> bytes:
    """Everything that comes back for some bytes."""
    with socket.create_connection(server.server_address[:2], timeout=20) as connection:
        try:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            received = b""
            while piece := connection.recv(65536):
                received += piece
        except ConnectionResetError:
            pass
        return received


def good(count: int = 2) -> dict[str, Any]:
    return json.loads(encode_request(*batch(count), "raw"))


def test_health_identity_and_scores(server: RewardServer) -> None:
    assert ask(server, "GET", "/health", authorization=None) == (200, {"status": "ok"})
    status, identity = ask(server, "GET", "/identity")
    assert status == 200
    assert identity == {
        "format": 1,
        "name": "exact",
        "version": "3",
        "limits": {"request_bytes": 20_000, "images": 4},
    }
    status, answer = ask(server, body=encode_request(*batch(2)))
    assert (status, answer["name"], len(answer["rewards"])) == (200, "exact", 2)


@pytest.mark.parametrize(
    "shown", [None, "", "Bearer", f"Bearer {TOKEN}x", f"bearer {TOKEN}", f"Basic {TOKEN}", "Bearer \xff"]
)
def test_other_tokens_are_refused_before_anything_is_read(server: RewardServer, shown: str | None) -> None:
    for method, path in (("GET", "/identity"), ("POST", "/score")):
        status, answer = ask(server, method, path, body=b"{" * 100, authorization=shown)
        assert (status, answer) == (401, {"error": "a token is needed"})


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/score", 405),
        ("GET", "/../etc/passwd", 404),
        ("POST", "/identity", 405),
        ("POST", "/nowhere", 404),
        ("PUT", "/score", 405),
        ("DELETE", "/score", 405),
        ("HEAD", "/health", 405),
    ],
)
def test_other_paths_and_methods(server: RewardServer, method: str, path: str, status: int) -> None:
    assert ask(server, method, path)[0] == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ("Content-Type: text/plain\r\nContent-Length: 2\r\n", 415),
        ("Content-Type: application/json\r\n", 411),
        ("Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n", 411),
        ("Content-Type: application/json\r\nContent-Length: two\r\n", 400),
        ("Content-Type: application/json\r\nContent-Length: -1\r\n", 400),
        ("Content-Type: application/json\r\nContent-Length: \u00b2\r\n", 400),
        ("Content-Type: application/json\r\nContent-Length: 2\r\nContent-Length: 3\r\n", 400),
        ("Content-Type: application/json\r\nContent-Length: 50\r\n", 400),
        ("Content-Type: application/json\r\nContent-Length: 20001\r\n", 413),
        (f"Content-Type: application/json\r\nContent-Length: {'9' * 5000}\r\n", 413),
        (f"Content-Type: application/json\r\nX-Long: {'x' * 70000}\r\n", 431),
        ("X-Many: 1\r\n" * 200, 431),
    ],
)
def test_bodies_are_announced_and_bounded(server: RewardServer, headers: str, status: int) -> None:
    head = f"POST /score HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\n{headers}\r\n"
    answer = raw(server, head.encode("latin-1") + b"{}")
    assert int(answer.split()[1]) == status


def changed(**fields: Any) -> bytes:
    return json.dumps({**good(), **fields}).encode()


BOMB = b"\x89PNG\r\n\x1a\n" + b"".join(
    len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")
    for kind, content in (
        (b"IHDR", (60000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])),
        (b"IDAT", zlib.compress(bytes(1000))),
        (b"IEND", b""),
    )
)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is not JSON"),
        (b"\xff\xfe\x00", "the body is not JSON"),
        (b"[" * 19_000, "the body is not JSON"),
        (b"[1]", "the body is a JSON list, expected an object"),
        (b'{"format": NaN}', "the body holds NaN"),
        (changed(format=2), "format is 2, expected 1"),
        (changed(format=True), "format is True, expected 1"),
        (changed(shape=[2, 8, 9]), "shape is [2, 8, 9], expected [B, H, W, 3]"),
        (changed(shape=[2, 8, 9, 4]), "shape is [2, 8, 9, 4], expected"),
        (changed(shape=[2, 8, 9.0, 3]), "shape is [2, 8, 9.0, 3], expected"),
        (changed(shape=[0, 8, 9, 3]), "shape is [0, 8, 9, 3], expected"),
        (changed(shape=[5, 8, 9, 3]), "shape asks for 5 images, at most 4"),
        (changed(shape=[2, 100_000, 100_000, 3]), "60000000000 bytes, at most 50000"),
        (changed(shape=[1, 8, 9, 3]), "images has 2 entries, expected 1"),
        (changed(encoding="pickle"), "encoding is 'pickle', expected one of png, raw"),
        (changed(encoding=["raw"]), "encoding is ['raw'], expected"),
        (changed(images="AAAA"), "images is 'AAAA', expected a list of texts"),
        (changed(images=["AAAA", "!"]), "images[0] has 3 bytes, expected 8 * 9 * 3"),
        (changed(images=["\u00e4", "!"]), "images[0] is not base64"),
        (changed(encoding="png", images=["AAAA"] * 2), "images[0] is not a PNG file"),
        (changed(encoding="png", images=[base64.b64encode(BOMB).decode()] * 2), "images[0] is"),
        (changed(prompts=["a"]), "prompts has 1 entries, expected 2"),
        (changed(prompts=["a", 3]), "prompts is ['a', 3], expected a list of texts"),
        (changed(metadata=[{}, []]), "metadata is [{}, []], expected a list of objects"),
        (changed(metadata=None), "metadata is None, expected a list of objects"),
    ],
)
def test_malformed_bodies_name_the_field(server: RewardServer, body: bytes, message: str) -> None:
    status, answer = ask(server, body=body)
    assert status == 400
    assert message in answer["error"]


def test_png_of_another_size_or_mode_is_refused() -> None:
    import io

    from PIL import Image

    def png(mode: str, size: tuple[int, int]) -> str:
        buffer = io.BytesIO()
        Image.new(mode, size).save(buffer, "PNG")
        return base64.b64encode(buffer.getvalue()).decode()

    for mode, size in (("RGB", (8, 8)), ("RGBA", (9, 8)), ("L", (9, 8))):
        body = changed(encoding="png", images=[png(mode, size)] * 2)
        with pytest.raises(ValueError, match=rf"images\[0\] is a {mode} image of {size[0]} x 8, expected RGB of 9 x 8"):
            decode_request(body, LIMITS)


def test_fuzzed_bodies_get_an_answer_or_a_refusal(server: RewardServer) -> None:
    """Seeded: bytes flipped, cut, doubled and spliced, and fields replaced by values of other kinds."""
    draw = random.Random(5)
    junk = [None, True, -1, 1e308, "", "\u0000", [], {}, [[]], ["x"], {"a": 1}, [1] * 5, "A" * 3000, 2**70]
    bodies = []
    for encoding in ("png", "raw"):
        whole = encode_request(*batch(2), encoding)
        for _ in range(60):
            body = bytearray(whole)
            for _ in range(draw.randint(1, 8)):
                at = draw.randrange(len(body))
                body[at : at + draw.randint(0, 3)] = draw.randbytes(draw.randint(0, 3))
            bodies.append(bytes(body[: draw.randint(1, len(body))] if draw.random() < 0.3 else body))
        for _ in range(60):
            document = json.loads(whole)
            key = draw.choice(list(document))
            if isinstance(document[key], list) and draw.random() < 0.6:
                document[key][draw.randrange(len(document[key]))] = draw.choice(junk)
            else:
                document[key] = draw.choice(junk)
            bodies.append(json.dumps(document).encode())
    statuses = [ask(server, body=body)[0] for body in bodies]
    # Metadata that this reward cannot read make it raise, which is the reward's affair.
    assert set(statuses) <= {200, 400, 413, 500}
    assert statuses.count(400) > len(statuses) / 2
    assert ask(server, body=encode_request(*batch(2)))[0] == 200


def test_fuzzed_connections_leave_the_server_at_work(server: RewardServer) -> None:
    draw = random.Random(6)
    whole = (
        f"POST /score HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n"
        "Content-Length: 2\r\n\r\n{}"
    ).encode()
    for _ in range(80):
        sent = bytearray(whole)
        for _ in range(draw.randint(1, 6)):
            at = draw.randrange(len(sent))
            sent[at : at + draw.randint(0, 4)] = draw.randbytes(draw.randint(0, 4))
        answer = raw(server, bytes(sent))
        if answer.startswith(b"HTTP/"):
            assert 400 <= int(answer.split()[1]) < 500, (bytes(sent), answer)
    assert ask(server, "GET", "/identity")[0] == 200


def test_one_request_too_many_is_told_to_come_back() -> None:
    with serving(Exact()) as server:
        held = 0
        while server.places.acquire(blocking=False):
            held += 1
        assert held >= 2
        status, answer = ask(server, body=encode_request(*batch(1)))
        assert status == 503
        assert "are being worked on" in answer["error"]
        server.places.release()
        assert ask(server, body=encode_request(*batch(1)))[0] == 200


class Told(Bodies):
    """Tells of every arrival."""

    def __init__(self, room: int) -> None:
        super().__init__(room)
        self.told = threading.Semaphore(0)

    def arrived(self, connection: socket.socket, host: str, size: int) -> None:
        super().arrived(connection, host, size)
        self.told.release()


def unfinished(server: RewardServer, size: int) -> socket.socket:
    """A connection whose body lacks its last byte."""
    connection = socket.create_connection(server.server_address[:2], timeout=20)
    head = f"POST /score HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {size}\r\n\r\n"
    connection.sendall(head.encode())
    connection.sendall(b" " * (size - 1))
    return connection


def test_unfinished_bodies_hold_no_place() -> None:
    with serving(Exact()) as server, contextlib.ExitStack() as stack:
        server.bodies = told = Told(server.bodies.room)
        for _ in range(2 * WAITING):
            stack.enter_context(unfinished(server, 2))
            assert told.told.acquire(timeout=20)
        assert ask(server, body=encode_request(*batch(1)), authorization=None)[0] == 200


def test_unfinished_bodies_have_bounded_memory() -> None:
    with serving(Exact(), limits=Limits(request_bytes=100_000)) as server, contextlib.ExitStack() as stack:
        held = [stack.enter_context(unfinished(server, 100_000)) for _ in range(WAITING + 1)]
        ended, _, _ = select.select(held, [], [], 20)
        assert ended
        assert ask(server, body=encode_request(*batch(1)), authorization=None)[0] == 200


class Line:
    """In place of a socket."""

    ended = False

    def shutdown(self, how: int) -> None:
        self.ended = True


def test_without_room_the_most_silent_body_of_the_greediest_client_ends() -> None:
    bodies: Any = Bodies(10)
    alone, first, second, late = (Line() for _ in range(4))
    bodies.arrived(alone, "192.0.2.1", 4)
    bodies.arrived(first, "2001:db8::1", 2)
    bodies.arrived(second, "2001:db8::2", 3)
    bodies.arrived(first, "2001:db8::1", 3)
    bodies.arrived(late, "192.0.2.9", 1)
    assert [line.ended for line in (alone, first, second, late)] == [False, False, True, False]
    with pytest.raises(BlockingIOError):
        bodies.arrived(late, "192.0.2.9", 9)
    bodies.arrived(late, "192.0.2.9", 3)
    assert not (alone.ended or first.ended or late.ended)
