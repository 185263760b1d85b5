"""A server as a writer: what it is sent, what it answers, and all that may go wrong."""

from __future__ import annotations

from typing import Any

import pytest
from stub_endpoint import Reply, chat, endpoint

from prdp.prompt_writers.base import Answer, Request, WriterError
from prdp.prompt_writers.endpoint import EndpointWriter
from prdp.support.errors import StartError, UserError

KEY = "sk-not-to-be-seen-anywhere"


def requests(count: int = 1) -> list[Request]:
    return [Request(number, f"write {number}\n4.", 4, 20, seed=number) for number in range(count)]


def asked(writer: EndpointWriter, count: int = 1) -> list[Answer]:
    found = dict(writer.answers(requests(count)))
    return [found[place] for place in range(count)]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prdp.support.http_client.time.sleep", lambda seconds: None)
    monkeypatch.delenv("PRDP_WRITER_KEY", raising=False)


def test_chat_as_the_protocol_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRDP_WRITER_KEY", KEY)
    with endpoint(lambda number, body: chat("4. a fox\n5. a b", "length" if number else "stop")) as stub:
        writer = EndpointWriter(stub.url, "small", temperature=0.5, extra={"seed": 7, "max_tokens": 9})
        assert asked(writer) + asked(writer) == [Answer("4. a fox\n5. a b"), Answer("4. a fox\n5. a b", cut=True)]
    assert stub.paths[0] == "/v1/chat/completions"
    assert stub.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert stub.bodies[0] == {
        "model": "small", "temperature": 0.5, "top_p": 1.0, "max_tokens": 9, "seed": 7,
        "messages": [{"role": "user", "content": "write 0\n4."}],
    }  # fmt: skip
    assert writer.name == "endpoint small"


def test_completions_go_on_behind_the_number() -> None:
    reply = 200, {"choices": [{"text": " a fox\n5. a bee", "finish_reason": "stop"}]}
    with endpoint(lambda number, body: reply) as stub:
        assert asked(EndpointWriter(stub.url, api="completions")) == [Answer("4. a fox\n5. a bee")]
    assert stub.paths == ["/v1/completions"]
    assert stub.bodies[0]["prompt"] == "write 0\n4."
    assert "Authorization" not in stub.headers[0] and "model" not in stub.bodies[0]


def test_requests_are_under_way_together_and_answers_keep_their_places() -> None:
    import threading

    together = threading.Barrier(3, timeout=30)

    def reply(number: int, body: dict[str, Any]) -> Reply:
        together.wait()
        return chat(f"4. {body['messages'][0]['content'][:7]}")

    with endpoint(reply) as stub:
        assert [one.text for one in asked(EndpointWriter(stub.url), 3)] == [f"4. write {n}" for n in range(3)]


def test_what_may_pass_is_asked_again() -> None:
    trouble: list[Reply] = [(429, {"error": {"message": "slow down"}}), (500, b"oops"), (503, b"")]
    with endpoint(lambda number, body: trouble[number] if number < 3 else chat("4. a fox")) as stub:
        assert asked(EndpointWriter(stub.url, retries=3)) == [Answer("4. a fox")]
    assert len(stub.bodies) == 4


def test_a_server_that_is_away_can_be_asked_later_and_answers_of_the_round_are_kept() -> None:
    def reply(number: int, body: dict[str, Any]) -> Reply:
        return chat("4. a fox") if "write 1" in str(body) else (503, {"error": "busy"})

    with endpoint(reply) as stub:
        given = []
        with pytest.raises(WriterError, match=r"/v1/chat/completions gave no answer in 2 attempts.*HTTP 503: busy"):
            given += list(EndpointWriter(stub.url, retries=1).answers(requests(2)))
        found = EndpointWriter(stub.url, retries=1).answers(requests(2))
        assert next(found) == (1, Answer("4. a fox"))
        with pytest.raises(WriterError):
            next(found)
    with pytest.raises(WriterError, match="ConnectionRefusedError"):
        asked(EndpointWriter(stub.url, retries=0))


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((400, {"error": {"message": "max_tokens is too large"}}), "answered HTTP 400: max_tokens is too large"),
        ((404, b"<html>no such page"), "answered HTTP 404: <html>no such page"),
        ((401, {"error": {"message": f"wrong key {KEY}"}}), "set the environment variable PRDP_WRITER_KEY to a key"),
        ((200, b""), r"something else than choices\[0\].message.content: ''"),
        ((200, b"hello"), "something else than .*: 'hello'"),
        ((200, []), "something else than"),
        ((200, {"choices": []}), "something else than"),
        ((200, {"choices": [{"text": "4. a fox"}]}), "something else than"),
        ((200, {"choices": [{"message": {"content": None}}]}), "something else than"),
        ((200, {"choices": [{"message": "4. a fox"}]}), "something else than"),
    ],
)
def test_what_would_come_again_is_told(reply: Reply, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRDP_WRITER_KEY", KEY)
    with endpoint(lambda number, body: reply) as stub, pytest.raises(StartError, match=message) as caught:
        asked(EndpointWriter(stub.url))
    assert len(stub.bodies) == 1
    assert str(caught.value).startswith(f"writer: {stub.url}/chat/completions")
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"url": "localhost:8000"}, "url=localhost:8000: must be http://"),
        ({"url": f"http://me:{KEY}@host/v1"}, "url=http://host/v1: no user or password in a URL"),
        ({"api": "responses"}, "api=responses: must be one of chat, completions"),
        ({"temperature": -1}, "temperature=-1: must be at least 0"),
        ({"top_p": 0}, "top_p=0: must be above 0"),
        ({"max_tokens": 0}, "max_tokens=0: must be at least 1, or null"),
        ({"at_once": 0}, "at_once=0"),
        ({"retries": -1}, "retries=-1"),
    ],
)
def test_arguments_that_cannot_be_used(arguments: dict[str, Any], message: str) -> None:
    from prdp.prompt_writers import check_writer

    section = {"_target_": "prdp.prompt_writers.endpoint.EndpointWriter", "url": "http://host/v1", **arguments}
    with pytest.raises(UserError, match=f"^writer: {message}") as caught:
        check_writer("writer", section, has_scenes=False)
    assert KEY not in str(caught.value)
