"""Any server that speaks OpenAI's completions or chat protocol as a writer."""

from __future__ import annotations

import json
import math
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prdp.prompt_writers.base import Answer, Request, WriterError, continued
from prdp.support.arguments import check_argument
from prdp.support.chat_protocol import APIS, choice
from prdp.support.errors import StartError
from prdp.support.http_client import RETRIED, HttpServer, NoAnswerError


class EndpointWriter:
    """Asks a server, with several requests under way at a time.

    Args:
        url: up to the version, such as 'http://127.0.0.1:8000/v1'.
        model: as the server calls it; None names none, for servers that have one.
        api: chat, or completions for models that go on with a text.
        key_variable: environment variable that holds the server's key; where it is not set, none is sent.
        temperature, top_p, max_tokens: as the protocol has them.
        extra: further keys of a request's body, such as {"seed": 1} or {"max_completion_tokens": 2048}.
        at_once: requests under way at a time.
        timeout_seconds: for each attempt at a request, from connecting to the last byte of the answer.
        retries: further attempts after network errors, time-outs and the answers 408, 425, 429 and from 500 on.
        backoff_seconds: pause before the first of them; doubles with each.

    Raises:
        ValueError: an argument that cannot be used.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        api: str = "chat",
        key_variable: str | None = "PRDP_WRITER_KEY",
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_tokens: int | None = 2048,
        extra: Mapping[str, Any] | None = None,
        at_once: int = 4,
        timeout_seconds: float = 120.0,
        retries: int = 5,
        backoff_seconds: float = 1.0,
    ) -> None:
        check_argument("api", api, api in APIS, f"one of {', '.join(APIS)}")
        check_argument("temperature", temperature, 0 <= temperature < math.inf, "at least 0")
        check_argument("top_p", top_p, 0 < top_p <= 1, "above 0 and at most 1")
        check_argument("max_tokens", max_tokens, max_tokens is None or max_tokens >= 1, "at least 1, or null")
        check_argument("at_once", at_once, at_once >= 1, "at least 1")
        self._server = HttpServer(
            url, key_variable, timeout_seconds, retries, backoff_seconds, "a key that it takes", (*RETRIED, 500)
        )
        self.name = f"endpoint {model}" if model else "endpoint"
        self.at_once = at_once
        self._api = api
        sampling = {"model": model, "temperature": temperature, "top_p": top_p, "max_tokens": max_tokens}
        self._body = {key: value for key, value in sampling.items() if value is not None} | dict(extra or {})

    @classmethod
    def check(cls, **arguments: Any) -> None:
        """Check the arguments; the server is not asked, as that may cost money."""
        cls(**arguments)

    def answers(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        """See `Writer.answers`; all requests are under way at once.

        Raises:
            WriterError: the server is away, after all attempts.
            StartError: it refuses the request or the key, or answers with something else than the protocol says.
        """
        done: queue.SimpleQueue[tuple[int, Answer | Exception]] = queue.SimpleQueue()

        def ask(place: int, request: Request) -> None:
            try:
                done.put((place, self._answer(request)))
            except (ValueError, OSError) as error:
                done.put((place, error))

        for place, request in enumerate(requests):
            # Not waited for at an interruption: an answer may take minutes.
            threading.Thread(target=ask, args=(place, request), daemon=True).start()
        failures = []
        for _ in requests:
            place, found = done.get()
            if isinstance(found, Answer):
                yield place, found
            else:
                failures.append(found)
        if failures:
            away = isinstance(failures[0], NoAnswerError)
            raise (WriterError if away else StartError)(f"writer: {failures[0]}") from failures[0]

    def _answer(self, request: Request) -> Answer:
        path = APIS[self._api]
        asked: dict[str, Any] = {"prompt": request.text}
        if self._api == "chat":
            asked = {"messages": [{"role": "user", "content": request.text}]}
        body = self._server.ask("POST", path, json.dumps(self._body | asked).encode())
        text, cut = choice(body, f"{self._server.url}{path}", self._api)
        return Answer(continued(text, request.first) if self._api == "completions" else text, cut)
