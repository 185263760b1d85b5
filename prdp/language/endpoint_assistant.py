"""An assistant behind a server with OpenAI's completions protocol that tells log-probabilities.

References:
    OpenAI's completions: `prompt` as token numbers, `echo`, `logprobs`. vLLM and SGLang serve them; vLLM names tokens
    by number where a request has `return_tokens_as_token_ids`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prdp.language.assistants import Scored, Session
from prdp.language.choosing import Chooser
from prdp.language.records import Example
from prdp.support.errors import StartError
from prdp.support.http_client import RETRIED, HttpServer
from prdp.support.json_lines import load_json

_PATH = "/completions"
_NUMBERED = re.compile(r"token_id:(\d+)")


class EndpointAssistant:
    """Asks a server. It is sent and tells tokens, so the tokenizer of the base has to be its own.

    Args:
        url: up to the version, such as 'http://127.0.0.1:8000/v1'.
        tokenizer: of the base.
        model: as the server calls it; None names none.
        key_variable: environment variable that holds the server's key.
        tokens_per_call: tokens that a call asks for. What the base does not want of them is dropped, so that texts
            are the same for any number, and calls fewer where tokens are left to the assistant in a row.
        at_once: requests under way at a time.
        timeout_seconds, retries, backoff_seconds: see `HttpServer`.
        extra: further keys of a request's body, such as {"return_tokens_as_token_ids": true}.
        limit: tokens that the server's model reads at most, where it is known.

    Raises:
        ValueError: see `HttpServer`.
    """

    gives_logits = False

    def __init__(
        self,
        url: str,
        tokenizer: Any,
        model: str | None = None,
        key_variable: str | None = "PRDP_ASSISTANT_KEY",
        tokens_per_call: int = 1,
        at_once: int = 4,
        timeout_seconds: float = 120.0,
        retries: int = 5,
        backoff_seconds: float = 1.0,
        extra: Mapping[str, Any] | None = None,
        limit: int | None = None,
    ) -> None:
        self._server = HttpServer(
            url, key_variable, timeout_seconds, retries, backoff_seconds, "a key that it takes", (*RETRIED, 500)
        )
        self.name = f"endpoint {model}" if model else "endpoint"
        self.digest = hashlib.sha256(f"{self._server.url}|{model}".encode()).hexdigest()[:16]
        self.limit = limit
        self.tokens_per_call = tokens_per_call
        self.end: int = tokenizer.eos_token_id
        self._numbers = _numbers(tokenizer)
        self._body = ({} if model is None else {"model": model}) | dict(extra or {})
        self._at_once = at_once

    def check(self, example: Example) -> None:
        """Ask for the score of one example, which shows whether the server tells what is needed.

        Raises:
            StartError: it does not, or its tokenizer is another one.
        """
        self._score(example)

    def score(self, examples: Sequence[Example]) -> Iterator[Scored]:
        """See `Assistant.score`.

        Raises:
            StartError: the server is away, or tells no log-probabilities of the tokens that it was sent.
        """
        with ThreadPoolExecutor(self._at_once) as pool:
            yield from pool.map(self._score, examples)

    def session(self, rows: int) -> Session:
        """See `Assistant.session`."""
        return _EndpointSession(self, rows)

    def continued(self, prompts: Sequence[Sequence[int]], chooser: Chooser) -> list[list[int]]:
        """Up to `tokens_per_call` tokens behind each prompt.

        Raises:
            StartError: see `score`.
        """
        with ThreadPoolExecutor(self._at_once) as pool:
            return list(pool.map(lambda prompt: self._continued(prompt, chooser), prompts))

    def _score(self, example: Example) -> Scored:
        sent = example.prompt + example.answer
        told = self._ask({"prompt": list(sent), "echo": True, "max_tokens": 0, "temperature": 0, "logprobs": 1})
        tokens, values, tops = told.get("tokens"), told.get("token_logprobs"), told.get("top_logprobs")
        if not (isinstance(tokens, list) and isinstance(values, list) and isinstance(tops, list)):
            raise StartError(f"{self._where} tells no log-probabilities of what it is sent (echo with logprobs)")
        if not len(tokens) == len(values) == len(tops) == len(sent):
            raise StartError(
                f"{self._where} was sent {len(sent)} tokens and tells of {len(tokens)}: its tokenizer is another one"
            )
        for place, (token, number) in enumerate(zip(tokens, sent, strict=True)):
            if number not in self._numbers_of(token):
                raise StartError(
                    f"{self._where} calls token {place}, number {number} of the base's, {token!r}: its tokenizer is "
                    "another one"
                )
        first = len(example.prompt)
        try:
            log_probs = np.array([float(one) for one in values[first:]], np.float32)
            likeliest = [max(one, key=lambda name: float(one[name])) for one in tops[first:]]
        except (TypeError, ValueError, AttributeError) as error:
            raise StartError(f"{self._where} tells log-probabilities that are none: {error}") from None
        # Another token that is called likewise cannot be told from the gold one.
        chosen = [
            number if number in self._numbers_of(name) else self._number(name)
            for name, number in zip(likeliest, example.answer, strict=True)
        ]
        return Scored(np.minimum(log_probs, 0.0), np.array(chosen, np.int32))

    def _continued(self, prompt: Sequence[int], chooser: Chooser) -> list[int]:
        asked = {
            "prompt": list(prompt),
            "max_tokens": self.tokens_per_call,
            "temperature": chooser.temperature,
            "top_p": chooser.top_p,
            "logprobs": 1,
        }
        told, ended = self._ask_choice(asked)
        tokens = told.get("tokens")
        if not isinstance(tokens, list):
            raise StartError(f"{self._where} tells no log-probabilities, which name the tokens that it writes")
        numbers = [self._number(token) for token in tokens]
        return [*numbers, self.end] if ended and self.end not in numbers else numbers

    def _ask(self, asked: dict[str, Any]) -> dict[str, Any]:
        return self._ask_choice(asked)[0]

    def _ask_choice(self, asked: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        try:
            body = self._server.ask("POST", _PATH, json.dumps(self._body | asked).encode())
        except (ValueError, OSError) as error:
            raise StartError(f"assistant: {error}") from error
        try:
            choice = load_json(body)["choices"][0]
            told = choice["logprobs"]
            ended = choice.get("finish_reason") == "stop"
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            choice, told, ended = None, None, False
        if not isinstance(told, dict):
            raise StartError(
                f"{self._where} answers without log-probabilities (choices[0].logprobs); an assistant has to tell them"
            )
        return told, ended

    @property
    def _where(self) -> str:
        return f"assistant: {self._server.url}{_PATH}"

    def _numbers_of(self, token: Any) -> Sequence[int]:
        found = _NUMBERED.fullmatch(str(token))
        return [int(found[1])] if found else self._numbers.get(str(token), ())

    def _number(self, token: Any) -> int:
        numbers = self._numbers_of(token)
        if len(numbers) != 1:
            many = f"stands for {len(numbers)} of the base's tokens" if numbers else "is no token of the base"
            raise StartError(f"{self._where} writes {token!r}, which {many}; vLLM numbers tokens with "
                             "assistant.extra.return_tokens_as_token_ids=true")  # fmt: skip
        return numbers[0]


class _EndpointSession:
    """Rows are sent whole with each request; tokens that were asked for ahead wait until the base wants them."""

    def __init__(self, assistant: EndpointAssistant, rows: int) -> None:
        self._assistant = assistant
        self._texts: list[list[int]] = [[] for _ in range(rows)]
        self._ahead: list[list[int]] = [[] for _ in range(rows)]
        self.calls, self.computed = np.zeros(rows, np.int64), np.zeros(rows, np.int64)

    def read(self, ids: Tensor, mask: Tensor) -> None:
        for row, (tokens, kept) in enumerate(zip(ids.tolist(), mask.tolist(), strict=True)):
            for token, one in zip(tokens, kept, strict=True):
                if one:
                    self._texts[row].append(token)
                    ahead = self._ahead[row]
                    self._ahead[row] = ahead[1:] if ahead[:1] == [token] else []

    def tokens(self, wanted: Tensor, ids: Tensor, chooser: Chooser) -> Tensor:
        asking = [row for row, one in enumerate(wanted.tolist()) if one and not self._ahead[row]]
        if asking:
            written = self._assistant.continued([self._texts[row] for row in asking], chooser)
            for row, tokens in zip(asking, written, strict=True):
                if not tokens:
                    raise StartError("assistant: the server answers with no token")
                self._ahead[row] = tokens
                self.calls[row] += 1
                self.computed[row] += len(tokens)
        return torch.tensor([ahead[0] if ahead else self._assistant.end for ahead in self._ahead])

    def logits(self, wanted: Tensor) -> Tensor:
        raise NotImplementedError("an endpoint tells tokens, not its whole distribution")


def _numbers(tokenizer: Any) -> dict[str, list[int]]:
    """What a server may call a token -> numbers: the vocabulary's own text first, else what it is decoded to."""
    own: dict[str, list[int]] = {}
    decoded: dict[str, list[int]] = {}
    for token, number in tokenizer.get_vocab().items():
        own.setdefault(token, []).append(number)
        decoded.setdefault(tokenizer.decode([number]), []).append(number)
    return decoded | own
