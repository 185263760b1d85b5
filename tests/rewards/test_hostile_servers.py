"""Hostile reward servers: their clients end in the documented error, in bounded memory and time."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from http_rewards import batch
from mutations import JUNK, deep, flipped, mutations

from prdp.rewards.base import identity_of
from prdp.rewards.remote import RemoteReward
from prdp.rewards.wire import FORMAT, WireError, decode_answer, decode_identity, encode_answer
from prdp.support.http_client import error_of

ANSWER = encode_answer(
    {"name": "fixed", "version": "1"}, np.array([0.5, -1.25]), {"part": np.array([1.0, np.nan]), "b": np.zeros(2)}
)
IDENTITY = json.dumps(
    {
        "format": FORMAT,
        "name": "fixed",
        "version": "1",
        "limits": {"request_bytes": 100_000, "images": 4},
        "terms": {"red": {"weight": 2.0, "watch": False, "name": "redness", "version": "1"}},
    }
).encode()


def test_thousands_of_damaged_answers_and_identities_decode_or_are_refused() -> None:
    refused = 0
    for body in mutations(3, [ANSWER], 3000):
        error_of(body)
        try:
            name, version, rewards, parts = decode_answer(body)
        except WireError as error:
            refused += 1
            assert str(error).isascii() or len(str(error)) < 500
        else:
            assert name.isprintable() and version.isprintable()
            assert all(type(value) is float for values in (rewards, *parts.values()) for value in values)
            json.dumps([name, version, list(parts)], ensure_ascii=False).encode()
    for body in mutations(4, [IDENTITY], 3000):
        try:
            identity = decode_identity(body)
        except WireError:
            refused += 1
        else:
            assert all(type(limit) is int and limit >= 1 for limit in identity["limits"].values())
            json.dumps(identity, ensure_ascii=False, allow_nan=False).encode()
    assert refused > 3000


MANY = b"".join(b'"%d": [], ' % i for i in range(20_000))


class Liar:
    """A server of canned answers: raw bytes for /identity and for /score, then the end of the connection."""

    def __init__(self) -> None:
        self.identity, self.score = http_answer(IDENTITY), http_answer(ANSWER)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with connection:
                start = connection.recv(4)
                if start == b"STOP":
                    return
                with connection.makefile("rb") as reader:
                    length = 0
                    while (line := reader.readline()) not in (b"\r\n", b""):
                        if line.lower().startswith(b"content-length:"):
                            length = int(line.split(b":")[1])
                    reader.read(length)
                with contextlib.suppress(OSError):
                    connection.sendall(self.score if start == b"POST" else self.identity)

    def close(self) -> None:
        with socket.create_connection(self._listener.getsockname()) as connection:
            connection.sendall(b"STOP")
        self._thread.join()
        self._listener.close()


def http_answer(body: bytes, status: str = "200 OK", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode("latin-1") + body


@pytest.fixture(scope="module")
def liar() -> Iterator[Liar]:
    one = Liar()
    yield one
    one.close()


def client(liar: Liar) -> RemoteReward:
    return RemoteReward(liar.url, token_variable=None, retries=1, backoff_seconds=0.0, timeout_seconds=20.0)


def test_a_lying_server_ends_in_the_documented_error_with_its_address(liar: Liar) -> None:
    draw = random.Random(7)
    liar.identity = http_answer(IDENTITY)
    honest = client(liar)
    answered = 0
    wholes = [http_answer(ANSWER), http_answer(ANSWER, "503 Busy", "Retry-After: 0\r\n"), CHUNKED]
    for body in mutations(8, [ANSWER], 60):
        liar.score = http_answer(body)
        answered += _scores(honest, liar)
    for number in range(120):
        liar.score = flipped(draw, wholes[number % 3])
        answered += _scores(honest, liar)
    for body in mutations(9, [IDENTITY], 60):
        liar.identity = http_answer(body)
        try:
            identity_of(client(liar))
        except ValueError as error:
            assert liar.url in str(error)
    liar.identity, liar.score = http_answer(IDENTITY), http_answer(ANSWER)
    assert client(liar).score(*batch(2))[0].tolist() == [0.5, -1.25]
    assert answered < 100


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"%x\r\n%s\r\n0\r\n\r\n" % (len(ANSWER), ANSWER)


def _scores(honest: RemoteReward, liar: Liar) -> bool:
    try:
        rewards, _ = honest.score(*batch(2))
    except ValueError as error:
        assert liar.url in str(error), error
        return False
    assert rewards.shape == (2,) and np.isfinite(rewards).all()
    return True


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (http_answer(b"{}", "503 Busy", "Retry-After: \xb2\r\n"), "HTTP 503"),
        (http_answer(b"{}", "503 Busy", f"Retry-After: {'9' * 400}\r\n"), "HTTP 503"),
        (http_answer(json.dumps({"error": "a\nb\x1b[31mc" * 500}).encode(), "400 Bad"), r"HTTP 400: a b \[31mca b"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: 1\r\n" * 300 + b"\r\n", "HTTPException"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", "LineTooLong"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n{}", "IncompleteRead"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n{}\r\n", "IncompleteRead|the body is not JSON"),
        (http_answer(ANSWER.replace(b"0.5", b'"0.5"')), "rewards is .*expected a list of numbers"),
        (http_answer(ANSWER.replace(b"0.5", b"9" * 4000)), "rewards is .*expected a list of numbers"),
        (http_answer(ANSWER.replace(b"0.5", b"1e999")), "must be finite numbers"),
        (
            http_answer(ANSWER.replace(b'{"part"', b"{" + MANY + b'"part"')),
            "sub_scores has 20002 entries, at most 256 are taken",
        ),
        (http_answer(b'{"format": 1, "a": [' + b"[]," * 1_000_000 + b"1]}"), "lists, objects and commas, at most"),
        (http_answer(ANSWER.replace(b'"part"', b'"mean"')), "gives a sub-score 'mean': the name is taken"),
        (http_answer(ANSWER.replace(b'"part"', b'"a\\nb"')), "a sub-score's name is 'a.*b', expected a line"),
        (http_answer(ANSWER.replace(b'"part"', b'"\\ud800"')), "a sub-score's name is .*, expected a line"),
        (
            http_answer(ANSWER.replace(b'{"part"', b'{"z": ' + deep("[", "]", 990).encode() + b', "part"')),
            "the body is not JSON|sub_scores",
        ),
    ],
)
def test_what_is_wrong_with_an_answer_is_said(
    liar: Liar, monkeypatch: pytest.MonkeyPatch, answer: bytes, message: str
) -> None:
    monkeypatch.setattr("prdp.support.http_client.time.sleep", lambda seconds: None)
    liar.identity = http_answer(IDENTITY)
    honest = client(liar)
    liar.score = answer
    with pytest.raises(ValueError, match=message) as caught:
        honest.score(*batch(2))
    assert liar.url in str(caught.value)


@pytest.mark.parametrize(
    "limits", [*JUNK[1:7], {"images": 0}, {"images": -3}, {"images": True}, {"request_bytes": "1"}]
)
def test_limits_that_are_none_are_refused_at_the_start(liar: Liar, limits: Any) -> None:
    liar.identity = http_answer(json.dumps({**json.loads(IDENTITY), "limits": limits}).encode())
    with pytest.raises(ValueError, match=r"/identity is not that of a reward server of format 1: limits is"):
        client(liar)


def test_an_answer_without_end_is_cut_off(liar: Liar, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prdp.support.http_client.MAX_ANSWER_BYTES", 100_000)
    liar.identity = http_answer(IDENTITY)
    honest = client(liar)
    liar.score = b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 3_000_000
    with pytest.raises(ValueError, match="answers with more than 100000 bytes"):
        honest.score(*batch(2))
