"""A server that speaks the chat protocol, with a function in the place of the model."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

Answer = Callable[[list[np.ndarray], str], Any]


@contextlib.contextmanager
def judge(answer: Answer) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """URL of a chat server that answers by a function of pictures and text, and the requests that it got."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body | {"authorization": self.headers.get("Authorization")})
            content = body["messages"][0]["content"]
            urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
            raw = [base64.b64decode(url.partition(",")[2]) for url in urls]
            said = answer([np.asarray(Image.open(io.BytesIO(one))) for one in raw], content[-1]["text"])
            status, said = said if isinstance(said, tuple) else (200, said)
            choice = {"message": {"content": said}, "finish_reason": "length" if said == "{" else "stop"}
            self.send_response(status)
            payload = json.dumps({"choices": [choice]}).encode()
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
