"""Reward servers that speak as those of UniRL and Flow-GRPO do, with the mean brightness in the place of a model."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import pickle
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

Answer = Callable[[str, bytes], tuple[int, bytes]]
"""Path and body of a request -> status and body of the answer."""


@contextlib.contextmanager
def answering(answer: Answer) -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """URL of a server that answers by a function, and the requests that it got."""
    asked: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            asked.append((self.path, body))
            status, content = answer(self.path, body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def brightness(content: bytes) -> float:
    return float(np.asarray(Image.open(io.BytesIO(content))).mean() / 255)


def unirl_service(path: str, body: bytes) -> tuple[int, bytes]:
    """As unirl-reward-service/reward_service/schemas.py has it: rewards 'bright' and 'parts'."""
    if path == "/rewards":
        return 200, json.dumps({"rewards": ["bright", "parts"]}).encode()
    results: list[dict[str, Any]] = []
    errors: list[dict[str, str]] = []
    for request in json.loads(body)["requests"]:
        [turn], [reward] = request["history"], request["required_rewards"]
        value = brightness(base64.b64decode(turn["image_b64"], validate=True))
        failed = turn["text"] == "fail"
        numbers = {"bright": value} if reward == "bright" else {"Alignment": value, "mean": len(turn["text"])}
        results.append({} if failed else {reward: numbers})
        errors.append({reward: "RuntimeError('out of memory')"} if failed else {})
    return 200, json.dumps({"results": results, "errors": errors}).encode()


def flow_grpo(path: str, body: bytes) -> tuple[int, bytes]:
    """As app_geneval.py of reward-server has it; what the test's own client sent is unpickled here."""
    asked = pickle.loads(body)
    scores = [brightness(one) for one in asked["images"]]
    strict = [float(one["prompt"] == text) for one, text in zip(asked["meta_datas"], asked["prompts"], strict=True)]
    groups = {"counting": [1.0], "colors": [-10.0]}
    return 200, pickle.dumps({"scores": scores, "rewards": strict, "strict_rewards": strict, "group_rewards": groups})
