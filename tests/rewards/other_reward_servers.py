"""What the reward servers of UniRL and Flow-GRPO answer, with the mean brightness in the place of a model."""

from __future__ import annotations

import base64
import io
import json
import pickle
from typing import Any

import numpy as np
from http_stub import Request
from PIL import Image


def brightness(content: bytes) -> float:
    return float(np.asarray(Image.open(io.BytesIO(content))).mean() / 255)


def unirl_service(request: Request) -> tuple[int, bytes]:
    """As unirl-reward-service/reward_service/schemas.py has it: rewards 'bright' and 'parts'."""
    if request.path == "/rewards":
        return 200, json.dumps({"rewards": ["bright", "parts"]}).encode()
    results: list[dict[str, Any]] = []
    errors: list[dict[str, str]] = []
    for one in json.loads(request.body)["requests"]:
        [turn], [reward] = one["history"], one["required_rewards"]
        value = brightness(base64.b64decode(turn["image_b64"], validate=True))
        failed = turn["text"] == "fail"
        numbers = {"bright": value} if reward == "bright" else {"Alignment": value, "mean": len(turn["text"])}
        results.append({} if failed else {reward: numbers})
        errors.append({reward: "RuntimeError('out of memory')"} if failed else {})
    return 200, json.dumps({"results": results, "errors": errors}).encode()


def flow_grpo(request: Request) -> tuple[int, bytes]:
    """As app_geneval.py of reward-server has it; what the test's own client sent is unpickled here."""
    asked = pickle.loads(request.body)
    scores = [brightness(one) for one in asked["images"]]
    strict = [float(one["prompt"] == text) for one, text in zip(asked["meta_datas"], asked["prompts"], strict=True)]
    groups = {"counting": [1.0], "colors": [-10.0]}
    return 200, pickle.dumps({"scores": scores, "rewards": strict, "strict_rewards": strict, "group_rewards": groups})
