"""A vision-language model as judge: any server that speaks OpenAI's chat protocol, by a rubric of yours."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import logging
import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image

from prdp.rewards.judge_answers import criteria_scores, group_scores, winner
from prdp.rewards.pixels import check_batch
from prdp.support.arguments import check_argument
from prdp.support.chat_protocol import APIS, choice
from prdp.support.http_client import MAX_BACKOFF_SECONDS, RETRIED, HttpServer
from prdp.support.json_lines import load_json
from prdp.support.side_by_side import results_of
from prdp.support.storage import write_atomically
from prdp.support.writable import check_can_be_written
from prdp.types import Float64, UInt8

_log = logging.getLogger(__name__)
CODE_VERSION = "1"
MODES = ("single", "group", "pairs")
RUBRICS = {
    "single": """\
You judge a picture that was drawn for a prompt. Give points from {low} to {high} for each of: {criteria}.
The prompt: {prompt}
Answer with one JSON object and nothing else, such as {example}.""",
    "group": """\
You judge {count} pictures that were drawn for one prompt, in the order in which they are shown. Give each points
from {low} to {high}; use the whole scale, and equal points only for pictures that are equally good.
The prompt: {prompt}
Answer with one JSON object and nothing else: {{"scores": [a number for each picture, in their order]}}.""",
    "pairs": """\
You compare two pictures that were drawn for one prompt.
The prompt: {prompt}
Which is better? Answer with one JSON object and nothing else: {{"better": "first"}}, {{"better": "second"}} or
{{"better": "equal"}}.""",
}
"""What is asked, by mode; a rubric of one's own has the same places to be filled."""


class VlmJudge:
    """Points that a vision-language model gives, from 0 to 1.

    'single' asks about one picture at a time, by criteria, which are sub-scores; the reward is their mean. 'group'
    shows all pictures of a prompt at once, so that they are told apart. 'pairs' compares each picture with the next
    ones of its prompt, first and second in turns; the reward is the share that it wins, an equal one as half. In the
    last two a picture's reward depends on those beside it.

    Answers are remembered, so the same question is not paid for twice. After one that cannot be read the question is
    asked again, with what was wrong.

    Args:
        url: up to the version, such as 'http://127.0.0.1:8000/v1'.
        model: as the server calls it; None names none, for servers that have one.
        mode: of `MODES`.
        criteria: of 'single', what points are given for.
        low: the worst mark.
        high: the best mark.
        rubric: what is asked, with the places {prompt}, {low}, {high}, {criteria}, {example} and {count} as in
            `RUBRICS`; or a text file of it, after '@'. None for that of the mode.
        opponents: of 'pairs', pictures that each is compared with; fewer where a prompt has fewer.
        key_variable: environment variable that holds the server's key; where it is not set, none is sent.
        temperature: of the answers.
        max_tokens: of an answer; one that is cut off is refused.
        extra: further keys of a request's body.
        cache: folder in which answers are kept for later runs; None keeps them in memory.
        max_requests: of this process, cached answers not counted; None for no limit.
        asks: attempts at a question until an answer can be read.
        at_once: requests under way at a time.
        timeout_seconds: for each attempt at a request.
        retries: further attempts after network errors, time-outs and the answers 408, 425, 429 and from 500 on.
        backoff_seconds: pause before the first of them; doubles with each.

    Raises:
        ValueError: an argument that cannot be used.
    """

    name = "vlm_judge"
    retries_itself = True

    def __init__(
        self,
        url: str,
        model: str | None = None,
        mode: str = "single",
        criteria: Sequence[str] = ("alignment", "quality"),
        low: float = 1.0,
        high: float = 10.0,
        rubric: str | None = None,
        opponents: int = 2,
        key_variable: str | None = "PRDP_JUDGE_KEY",
        temperature: float = 0.0,
        max_tokens: int = 256,
        extra: Mapping[str, Any] | None = None,
        cache: str | None = None,
        max_requests: int | None = None,
        asks: int = 3,
        at_once: int = 8,
        timeout_seconds: float = 120.0,
        retries: int = 5,
        backoff_seconds: float = 1.0,
    ) -> None:
        check_argument("mode", mode, mode in MODES, f"one of {', '.join(MODES)}")
        differ = bool(criteria) and len(set(criteria)) == len(criteria)
        check_argument("criteria", list(criteria), differ, "different names")
        check_argument("high", high, -math.inf < low < high < math.inf, f"above low={low}")
        check_argument("opponents", opponents, opponents >= 1, "at least 1")
        check_argument("temperature", temperature, 0 <= temperature < math.inf, "at least 0")
        check_argument("max_tokens", max_tokens, max_tokens >= 1, "at least 1")
        check_argument("max_requests", max_requests, max_requests is None or max_requests >= 1, "at least 1, or null")
        check_argument("asks", asks, asks >= 1, "at least 1")
        check_argument("at_once", at_once, at_once >= 1, "at least 1")
        self._server = HttpServer(
            url, key_variable, timeout_seconds, retries, backoff_seconds, "a key that it takes", (*RETRIED, 500)
        )
        self._mode, self._criteria, self._low, self._high = mode, tuple(criteria), float(low), float(high)
        self._rubric = _rubric(rubric, mode)
        self._opponents, self._asks, self._at_once = opponents, asks, at_once
        sampling = {"model": model, "temperature": temperature, "max_tokens": max_tokens}
        self._body = {key: value for key, value in sampling.items() if value is not None} | dict(extra or {})
        self._asked("a prompt", 2)  # refuses a rubric with places that nothing fills
        self._answers = Answers(Path(cache).expanduser() if cache else None)
        self._left, self._lock = math.inf if max_requests is None else max_requests, Lock()
        self._max_requests = max_requests
        if mode == "pairs":
            _log.warning(
                "vlm_judge, mode=pairs: the mean over a prompt's pictures is one half whatever they show: eval/score "
                "stands still; watch another reward, or judge checkpoints by mode=single"
            )
        told = json.dumps([self._body, mode, self._criteria, self._low, self._high, self._rubric, opponents])
        self.version = f"{CODE_VERSION}-{hashlib.blake2b(told.encode(), digest_size=6).hexdigest()}"
        self.waits_seconds: float = asks * ((retries + 1) * timeout_seconds + retries * MAX_BACKOFF_SECONDS)

    @classmethod
    def check(cls, **arguments: Any) -> None:
        """Check the arguments; the server is not asked, as that may cost money."""
        cls(**arguments)
        if arguments.get("cache"):
            check_can_be_written("cache", Path(arguments["cache"]).expanduser())

    def score(
        self, images: UInt8, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> tuple[Float64, dict[str, Float64]]:
        """Rewards float64 [B] in [0, 1], and the criteria of 'single', of uint8 images [B, H, W, 3].

        The images of a prompt stand side by side, as samplers give them.

        Raises:
            ValueError: the server refuses, its answers cannot be read, or more would be asked than `max_requests`.
            NoAnswerError: the server is away, after all attempts.
        """
        check_batch(images, prompts, metadata)
        pictures = [_data_url(image) for image in images]
        groups = [[place for place, _ in found] for _, found in groupby(enumerate(prompts), lambda pair: pair[1])]
        questions: list[tuple[str, tuple[int, ...]]]
        if self._mode == "single":
            questions = [(prompts[place], (place,)) for place in range(len(images))]
        elif self._mode == "group":
            questions = [(prompts[group[0]], tuple(group)) for group in groups]
        else:
            questions = [(prompts[group[0]], pair) for group in groups for pair in pairs_of(group, self._opponents)]
        answers = results_of(
            lambda question: self._points(question[0], [pictures[one] for one in question[1]]), questions, self._at_once
        )
        if self._mode == "single":
            table = np.array(answers)
            return table.mean(axis=1), {name: table[:, number] for number, name in enumerate(self._criteria)}
        won, seen = np.zeros(len(images)), np.zeros(len(images))
        for (_, of), points in zip(questions, answers, strict=True):
            np.add.at(won, list(of), points)
            np.add.at(seen, list(of), 1.0)
        return np.where(seen > 0, won / np.maximum(seen, 1.0), 0.5), {}

    def _points(self, prompt: str, pictures: Sequence[str]) -> list[float]:
        """Points in [0, 1] of one question: by criteria, of the pictures of a group, or of both of a pair."""
        text = self._asked(prompt, len(pictures))
        shown = [{"type": "image_url", "image_url": {"url": url}} for url in pictures]
        told = json.dumps([self._body, self._mode, self._criteria, self._low, self._high, text, pictures])
        key = hashlib.blake2b(told.encode(), digest_size=16).hexdigest()
        known = self._answers.get(key)
        if known is not None and len(known) == (len(self._criteria) if self._mode == "single" else len(pictures)):
            return known
        where, problem = f"{self._server.url}{APIS['chat']}", ""
        for _ in range(self._asks):
            again = f"\nYour last answer could not be used: it {problem}." if problem else ""
            message = {"role": "user", "content": [*shown, {"type": "text", "text": text + again}]}
            self._pay()
            body = self._server.ask("POST", APIS["chat"], json.dumps(self._body | {"messages": [message]}).encode())
            answer, cut = choice(body, where, "chat")
            try:
                if cut:
                    raise ValueError(f"is cut off after {self._body.get('max_tokens')} tokens (max_tokens)")
                points = self._read(answer, len(pictures))
            except ValueError as error:
                problem = str(error)
                continue
            self._answers.put(key, points)
            return points
        attempts = "once" if self._asks == 1 else f"{self._asks} times"
        raise ValueError(f"{where} was asked {attempts} about prompt {prompt!r}; its answer {answer[:200]!r} {problem}")

    def _read(self, answer: str, count: int) -> list[float]:
        if self._mode == "pairs":
            return winner(answer)
        marks = criteria_scores(answer, self._criteria) if self._mode == "single" else group_scores(answer, count)
        for mark in marks:
            if not self._low <= mark <= self._high:
                raise ValueError(f"has {mark:g} points, must be from {self._low:g} to {self._high:g}")
        return [(mark - self._low) / (self._high - self._low) for mark in marks]

    def _asked(self, prompt: str, count: int) -> str:
        example = json.dumps(dict.fromkeys(self._criteria, round((self._low + self._high) / 2, 1)))
        try:
            return self._rubric.format(
                prompt=prompt,
                count=count,
                low=f"{self._low:g}",
                high=f"{self._high:g}",
                criteria=", ".join(self._criteria),
                example=example,
            )
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(
                f"rubric: {error} cannot be filled in; places are {{prompt}}, {{low}}, {{high}}, {{criteria}}, "
                "{example} and {count}, and other braces are doubled"
            ) from None

    def _pay(self) -> None:
        with self._lock:
            if self._left < 1:
                raise ValueError(f"max_requests={self._max_requests} are spent: raise it, and resume the run")
            self._left -= 1


class Answers:
    """Points by question, in memory and, where a folder is given, in a small file each.

    Args:
        folder: made when the first answer is kept; several processes may share it.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._known: dict[str, list[float]] = {}

    def get(self, key: str) -> list[float] | None:
        """What was answered; None where nothing was, or the file is damaged."""
        if key not in self._known and self._folder is not None:
            try:
                points = load_json((self._folder / key[:2] / f"{key}.json").read_bytes())
            except (OSError, ValueError):
                return None
            if isinstance(points, list) and all(isinstance(one, int | float) for one in points):
                self._known[key] = [float(one) for one in points]
        return self._known.get(key)

    def put(self, key: str, points: Sequence[float]) -> None:
        """Keep an answer."""
        self._known[key] = list(points)
        if self._folder is not None:
            file = self._folder / key[:2] / f"{key}.json"
            write_atomically(file, json.dumps(list(points)).encode())


def pairs_of(group: Sequence[int], opponents: int) -> list[tuple[int, int]]:
    """Each image with the next ones of its group, around a circle; who is shown first alternates.

    Args:
        group: places of the images.
        opponents: with how many of those after it each is compared; every pair at most once.

    Returns:
        (first, second) of each comparison; none for a group of one.
    """
    found: dict[frozenset[int], tuple[int, int]] = {}
    for step in range(1, min(opponents, len(group) - 1) + 1):
        for number, one in enumerate(group):
            other = group[(number + step) % len(group)]
            found.setdefault(frozenset((one, other)), (one, other) if number % 2 == 0 else (other, one))
    return list(found.values())


def _data_url(image: UInt8) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _rubric(given: str | None, mode: str) -> str:
    if given is None:
        return RUBRICS[mode]
    text = given
    if given.startswith("@"):
        try:
            text = Path(given[1:]).expanduser().read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ValueError(f"rubric={given}: cannot be read: {error}") from None
    check_argument("rubric", given, "{prompt}" in text, "a text with {prompt} in it, or @ and the path of one")
    return text
