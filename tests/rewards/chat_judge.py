"""A server that speaks the chat protocol, with a function in the place of the model."""

from __future__ import annotations

import base64
import contextlib
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from http_stub import Request, answering
from PIL import Image

Answer = Callable[[list[np.ndarray], str], Any]


@contextlib.contextmanager
def judge(answer: Answer) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """URL of a chat server that answers by a function of pictures and text, and the requests that it got."""
    asked: list[dict[str, Any]] = []

    def reply(request: Request) -> tuple[int, bytes]:
        body = json.loads(request.body)
        asked.append(body | {"authorization": request.headers.get("Authorization")})
        content = body["messages"][0]["content"]
        urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
        raw = [base64.b64decode(url.partition(",")[2]) for url in urls]
        said = answer([np.asarray(Image.open(io.BytesIO(one))) for one in raw], content[-1]["text"])
        status, said = said if isinstance(said, tuple) else (200, said)
        choice = {"message": {"content": said}, "finish_reason": "length" if said == "{" else "stop"}
        return status, json.dumps({"choices": [choice]}).encode()

    with answering(reply) as (url, _):
        yield f"{url}/v1", asked
