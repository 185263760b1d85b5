"""Reward servers of other projects: the reward service of UniRL, and the servers of Flow-GRPO."""

from __future__ import annotations

import base64
import io
import json
import math
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from prdp.rewards.names import taken
from prdp.rewards.pixels import check_batch
from prdp.rewards.plain_pickle import plain_pickle
from prdp.rewards.wire import json_object, plain_metadata
from prdp.rewards.wire_values import WireError, name_of, numbers_of, short
from prdp.support.arguments import check_argument
from prdp.support.http_client import MAX_BACKOFF_SECONDS, RETRIED, HttpServer
from prdp.support.suggest import did_you_mean
from prdp.types import Float64, UInt8

CODE_VERSION = "1"
_FLOW_GRPO_RETRIED = (*RETRIED, 500)  # its servers answer so whenever something went wrong, and its client asks again

Scores = tuple[list[float], dict[str, list[float]]]
"""Rewards and sub-scores of a batch."""


class _Served:
    """What both have in common: batches, one after the other, to a server that tells no version.

    Args:
        url, token_variable, timeout_seconds, retries, backoff_seconds: see `prdp.rewards.remote.RemoteReward`.
        batch_size: images per request.
        retried: statuses that are asked again.
    """

    name: str
    version: str
    retries_itself = True

    def __init__(
        self,
        url: str,
        token_variable: str | None,
        batch_size: int,
        timeout_seconds: float,
        retries: int,
        backoff_seconds: float,
        retried: Sequence[int],
    ) -> None:
        check_argument("batch_size", batch_size, batch_size >= 1, "at least 1")
        self._server = HttpServer(
            url, token_variable, timeout_seconds, retries, backoff_seconds, "the server's", retried
        )
        self._batch_size = batch_size
        self.waits_seconds: float = (retries + 1) * timeout_seconds + retries * MAX_BACKOFF_SECONDS

    def score(
        self, images: UInt8, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> tuple[Float64, dict[str, Float64]]:
        """Rewards float64 [B] and sub-scores of uint8 images [B, H, W, 3]; metadata have to fit into JSON.

        Raises:
            ValueError: the server cannot be reached, refuses, or answers with something else than scores.
        """
        check_batch(images, prompts, metadata)
        plain = [plain_metadata(*pair) for pair in zip(prompts, metadata, strict=True)]
        rewards: list[float] = []
        parts: list[dict[str, list[float]]] = []
        for start in range(0, len(images), self._batch_size):
            part = slice(start, start + self._batch_size)
            try:
                found, also = self._asked(images[part], list(prompts[part]), plain[part])
                self._check_counts(found, also, len(images[part]))
            except WireError as error:
                raise ValueError(f"{self._server.url}: {error}") from None
            rewards += found
            parts.append(also)
        if len({frozenset(one) for one in parts}) > 1:
            raise ValueError(f"{self._server.url} answers some images by other sub-scores than others")
        joined = {name: np.array([value for one in parts for value in one[name]]) for name in parts[0]}
        return np.array(rewards, np.float64), joined

    def _asked(self, images: UInt8, prompts: list[str], metadata: list[dict[str, Any]]) -> Scores:
        """Rewards and sub-scores of one request."""
        raise NotImplementedError

    @staticmethod
    def _check_counts(rewards: Sequence[float], parts: Mapping[str, Sequence[float]], count: int) -> None:
        for name, values in {"the answer": rewards, **parts}.items():
            if len(values) != count:
                raise WireError(f"{name} has {len(values)} scores, expected {count}, one an image")


class UniRLService(_Served):
    """A reward of UniRL's reward service (`unirl-reward-service`): JSON over HTTP, pictures as PNG.

    Args:
        url: of the service, such as 'http://127.0.0.1:8080'.
        reward: its name there, as `GET /rewards` lists it.
        metric: which of its numbers is the reward; None for the one of the reward's name, or the only one. All are
            sub-scores, where there are several.
        token_variable: environment variable that holds a token, for a proxy in front; not set: none is sent.
        batch_size: images per request.
        timeout_seconds, retries, backoff_seconds: see `prdp.rewards.remote.RemoteReward`.

    Raises:
        ValueError: an argument that cannot be used, or a service that cannot be reached or has no such reward.

    References:
        github.com/Tencent-Hunyuan/UniRL, unirl-reward-service/README.md
    """

    def __init__(
        self,
        url: str,
        reward: str,
        metric: str | None = None,
        token_variable: str | None = "PRDP_REWARD_TOKEN",
        batch_size: int = 32,
        timeout_seconds: float = 180.0,
        retries: int = 5,
        backoff_seconds: float = 0.5,
    ) -> None:
        super().__init__(url, token_variable, batch_size, timeout_seconds, retries, backoff_seconds, RETRIED)
        self._reward, self._metric = reward, metric
        self.name = reward
        self.version = f"{CODE_VERSION}-unirl{'' if metric is None else f'-{metric}'}"
        try:
            known = json_object(self._server.ask("GET", "/rewards")).get("rewards")
            if not isinstance(known, list):
                raise WireError(f"rewards is {short(known)}, expected a list of names")
            names = [name_of(one, "a reward's name") for one in known]
        except WireError as error:
            raise ValueError(f"{self._server.url}/rewards is not that of a UniRL reward service: {error}") from None
        if reward not in names:
            hint = did_you_mean(reward, names) or f"; it has {', '.join(names)}"
            raise ValueError(f"reward={reward}: {self._server.url} has no such reward{hint}")

    @classmethod
    def check(cls, url: str, reward: str, retries: int = 5, **arguments: Any) -> None:
        """Check the arguments and ask the service, once, for its rewards; raises ValueError as the constructor does."""
        check_argument("retries", retries, retries >= 0, "at least 0")
        cls(url, reward, retries=0, **arguments)

    def _asked(self, images: UInt8, prompts: list[str], metadata: list[dict[str, Any]]) -> Scores:
        pictures = [base64.b64encode(_encoded(image, "PNG")).decode() for image in images]
        requests = [
            {"history": [{"text": text, "image_b64": picture}], "required_rewards": [self._reward], "metadata": meta}
            for text, picture, meta in zip(prompts, pictures, metadata, strict=True)
        ]
        document = json_object(self._server.ask("POST", "/score", json.dumps({"requests": requests}).encode()))
        results, errors = document.get("results"), document.get("errors") or []
        if not isinstance(results, list) or len(results) != len(images):
            raise WireError(f"results is {short(results)}, expected a list of {len(images)} objects")
        rows = [self._metrics(one, errors[place : place + 1], prompts[place]) for place, one in enumerate(results)]
        metric = self._metric or (self._reward if self._reward in rows[0] else "")
        if not metric and len(rows[0]) == 1:
            [metric] = rows[0]
        if any(metric not in row for row in rows):
            raise WireError(f"{self._reward} has no metric {metric!r}, it has {', '.join(rows[0])}: set metric")
        if any(row.keys() != rows[0].keys() for row in rows):
            raise WireError(f"{self._reward} has other metrics for some images than for others")
        names = [name for name in rows[0] if len(rows[0]) > 1]
        # A name that logs use for the reward itself gets that of the reward before it.
        called = {name: f"{self._reward}_{name}" if taken(name) else name for name in names}
        return [row[metric] for row in rows], {called[name]: [row[name] for row in rows] for name in names}

    def _metrics(self, result: Any, errors: Any, prompt: str) -> dict[str, float]:
        """The numbers of one image, by metric."""
        found = result.get(self._reward) if isinstance(result, dict) else None
        if not isinstance(found, dict) or not found:
            said = errors[0].get(self._reward) if errors and isinstance(errors[0], dict) else None
            raise WireError(f"no score by {self._reward} for prompt {short(prompt)}: {short(said or result)}")
        numbers = numbers_of(list(found.values()), f"the metrics of {self._reward}")
        return dict(zip([name_of(one, "a metric's name") for one in found], numbers, strict=True))


class FlowGRPOServer(_Served):
    """A reward server of Flow-GRPO (`reward-server`), such as GenEval's or DeQA's: pickles over HTTP, pictures as JPEG.

    It is sent what any of these servers looks at: images, prompts and metadata. Of its answer plain values are read and
    nothing else, by `prdp.rewards.plain_pickle`: no class and no function that it names is looked for.

    Args:
        url: of the server, such as 'http://127.0.0.1:18085'.
        key: the list of the answer that is the reward: 'scores', 'rewards' or 'strict_rewards' of GenEval's server,
            'outputs' of others. Other lists with a number for each image are sub-scores.
        token_variable: environment variable that holds a token, for a proxy in front; not set: none is sent.
        batch_size: images per request.
        timeout_seconds, retries, backoff_seconds: see `prdp.rewards.remote.RemoteReward`; the status 500 is asked
            again, too.

    Raises:
        ValueError: an argument that cannot be used.

    References:
        github.com/yifan123/reward-server, and flow_grpo/rewards.py of github.com/yifan123/flow_grpo
    """

    def __init__(
        self,
        url: str,
        key: str = "outputs",
        token_variable: str | None = "PRDP_REWARD_TOKEN",
        batch_size: int = 64,
        timeout_seconds: float = 120.0,
        retries: int = 5,
        backoff_seconds: float = 1.0,
    ) -> None:
        super().__init__(url, token_variable, batch_size, timeout_seconds, retries, backoff_seconds, _FLOW_GRPO_RETRIED)
        check_argument("key", key, bool(key), "the name of a list in the server's answer")
        self._key = key
        self.name = f"flow_grpo_{key}"
        self.version = f"{CODE_VERSION}-flow_grpo"

    @classmethod
    def check(cls, **arguments: Any) -> None:
        """Check the arguments; the server answers to images alone, and is not asked."""
        cls(**arguments)

    def _asked(self, images: UInt8, prompts: list[str], metadata: list[dict[str, Any]]) -> Scores:
        asked = {
            "images": [_encoded(image, "JPEG") for image in images],
            "prompts": prompts,
            "meta_datas": [{**meta, "prompt": text} for meta, text in zip(metadata, prompts, strict=True)],
            "only_strict": False,
        }
        answer = plain_pickle(self._server.ask("POST", "/", pickle.dumps(asked)))
        if not isinstance(answer, dict):
            raise WireError(f"the answer is {short(answer)}, expected a dict of lists")
        if self._key not in answer:
            raise WireError(f"the answer has no {self._key}, it has {', '.join(map(str, answer))}: set key")
        others = {
            name_of(name, "a key of the answer"): values
            for name, values in answer.items()
            if name != self._key and isinstance(values, list) and len(values) == len(images) and _are_numbers(values)
        }
        return numbers_of(answer[self._key], self._key), {
            name: numbers_of(values, name) for name, values in others.items()
        }


def _encoded(image: UInt8, format_: str) -> bytes:
    """A picture as a file; JPEG in Pillow's own quality, as Flow-GRPO's trainer sends it."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format_)
    return buffer.getvalue()


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one) for one in values)
