"""An assistant behind a server: the same scores and texts as here, fewer calls in blocks, and what is refused."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from stub_endpoint import Reply, Stub, endpoint

from prdp.language.choosing import SCORES, Above
from prdp.language.decoding import Decoding, Pair, decode
from prdp.language.endpoint_assistant import EndpointAssistant
from prdp.language.records import encode_all
from prdp.language.shapes_task import records
from prdp.support.errors import StartError

HOW = Decoding(max_new_tokens=10, batch_size=4)


@contextlib.contextmanager
def serving(network: Any, tokenizer: Any, numbered: bool = False, **changes: Any) -> Iterator[Stub]:
    """OpenAI's completions of a model, as vLLM answers them; `changes` spoil what is told of log-probabilities."""

    def name(number: int) -> str:
        return f"token_id:{number}" if numbered else str(tokenizer.convert_ids_to_tokens(number))

    @torch.no_grad()
    def reply(number: int, body: dict[str, Any]) -> Reply:
        ids = list(body["prompt"])
        if body.get("echo"):
            log_probs = torch.log_softmax(network(input_ids=torch.tensor([ids])).logits[0], -1)
            tops = [None, *({name(int(row.argmax())): float(row.max())} for row in log_probs[:-1])]
            values = [None, *(float(row[token]) for row, token in zip(log_probs, ids[1:], strict=False))]
            told: Any = {"tokens": list(map(name, ids)), "token_logprobs": values, "top_logprobs": tops}
            finish = "length"
        else:
            written: list[int] = []
            while len(written) < body["max_tokens"] and 2 not in written:
                written.append(int(network(input_ids=torch.tensor([ids + written])).logits[0, -1].argmax()))
            finish = "stop" if 2 in written else "length"
            told = {"tokens": [name(one) for one in written if one != 2]}
        told = {key: value for key, value in {**told, **changes}.items() if value is not None} or None
        return 200, {"choices": [{"text": "", "finish_reason": finish, "logprobs": told}]}

    with endpoint(reply) as stub:
        yield stub


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PRDP_ASSISTANT_KEY", raising=False)


def test_scores_are_those_of_the_model_here(pair: Any, tokenizer: Any) -> None:
    examples = encode_all(tokenizer, records("train", 2, 0), 64)
    here = list(pair.assistant.score(examples))
    for numbered in (False, True):
        with serving(pair.assistant.model.network, tokenizer, numbered) as stub:
            there = list(EndpointAssistant(stub.url, tokenizer, "large").score(examples))
        for one, other in zip(here, there, strict=True):
            np.testing.assert_allclose(one.log_probs, other.log_probs, atol=1e-5)
            np.testing.assert_array_equal(one.tops, other.tops)
    first = min(stub.bodies, key=lambda body: body["prompt"])
    assert first["model"] == "large" and first["max_tokens"] == 0 and first["logprobs"] == 1


@pytest.mark.parametrize("block", [1, 4])
def test_texts_are_those_of_the_model_here_whatever_the_block(
    pair: Any, tokenizer: Any, prompts: Any, block: int
) -> None:
    def rule_for(rows: Any) -> Above:
        return Above(SCORES["deferral"], 0.5)

    here = list(decode(pair, prompts, rule_for, HOW))
    with serving(pair.assistant.model.network, tokenizer) as stub:
        far = EndpointAssistant(stub.url, tokenizer, tokens_per_call=block)
        there = list(decode(dataclasses.replace(pair, assistant=far), prompts, rule_for, HOW))
    for one, other in zip(here, there, strict=True):
        assert (one.tokens, one.by_assistant) == (other.tokens, other.by_assistant)
    calls = sum(one.calls for one in there)
    assert calls == len(stub.bodies)
    asked = sum(sum(one.by_assistant) for one in here)
    assert calls == asked if block == 1 else calls < asked, "a block serves tokens that are left in a row"


def test_a_mixture_needs_the_whole_distribution(pair: Pair, tokenizer: Any, prompts: Any) -> None:
    far = dataclasses.replace(pair, assistant=EndpointAssistant("http://127.0.0.1:9/v1", tokenizer))
    with pytest.raises(StartError, match="compose=true: needs the assistant's whole distribution"):
        list(decode(far, prompts, lambda rows: Above(SCORES["deferral"], 0.5), dataclasses.replace(HOW, compose=True)))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tokens": None, "token_logprobs": None, "top_logprobs": None}, "answers without log-probabilities"),
        ({"top_logprobs": None}, "tells no log-probabilities of what it is sent"),
        ({"tokens": ["red"]}, r"was sent \d+ tokens and tells of 1: its tokenizer is another one"),
    ],
)
def test_an_endpoint_without_log_probabilities_is_refused(
    pair: Any, tokenizer: Any, changes: dict[str, Any], told: str
) -> None:
    [example] = encode_all(tokenizer, records("train", 1, 0), 64)
    with serving(pair.assistant.model.network, tokenizer, **changes) as stub, pytest.raises(StartError, match=told):
        EndpointAssistant(stub.url, tokenizer).check(example)


def test_tokens_that_are_called_otherwise_are_refused(pair: Any, tokenizer: Any, prompts: Any) -> None:
    [example] = encode_all(tokenizer, records("train", 1, 0), 64)
    other = ["x"] * (len(example.prompt) + len(example.answer))
    with serving(pair.assistant.model.network, tokenizer, tokens=other) as stub:
        assistant = EndpointAssistant(stub.url, tokenizer)
        with pytest.raises(StartError, match=r"calls token 0, number 1 of the base's, 'x'"):
            assistant.check(example)
        far = dataclasses.replace(pair, assistant=assistant)
        with pytest.raises(
            StartError, match=r"writes 'x', which is no token of the base; .*return_tokens_as_token_ids"
        ):
            list(decode(far, prompts[:1], lambda rows: Above(SCORES["deferral"], -1.0), HOW))
