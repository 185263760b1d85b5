"""A server of the chat protocol that answers as a test says, and remembers what it was asked."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from http_stub import Request, answering

Reply = tuple[int, Any]
"""Status, and a body: bytes as they are, anything else as JSON."""


@dataclass
class Stub:
    """What a server was asked: paths, headers and bodies, in the order in which requests came."""

    url: str = ""
    paths: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)


def chat(text: str, finish: str = "stop") -> Reply:
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}]}


@contextlib.contextmanager
def endpoint(reply: Callable[[int, dict[str, Any]], Reply]) -> Iterator[Stub]:
    """Serve `reply(number of the request, its body)`."""
    stub, lock = Stub(), threading.Lock()

    def answer(request: Request) -> tuple[int, bytes]:
        body = json.loads(request.body)
        with lock:
            number = len(stub.bodies)
            stub.paths.append(request.path)
            stub.headers.append(dict(request.headers))
            stub.bodies.append(body)
        status, content = reply(number, body)
        return status, content if isinstance(content, bytes) else json.dumps(content).encode()

    with answering(answer) as (url, _):
        stub.url = f"{url}/v1"
        yield stub
