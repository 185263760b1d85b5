"""Two models that write together: caches, limits, batches, rules, draws, and the library's own `generate`."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from prdp.language.choosing import SCORES, Above, AtRandom, Constant, Sampled
from prdp.language.decoding import Answer, Decoding, Pair, decode, stream
from prdp.language.generate import custom_generate
from prdp.support.errors import StartError

HOW = Decoding(max_new_tokens=14, batch_size=4)
ETAS = (-1.0, 0.45, 0.5, 2.0)


def eta(value: float) -> Any:
    return lambda rows: Above(SCORES["deferral"], value)


def written(pair: Pair, prompts: Sequence[Sequence[int]], rule_for: Any, **changes: Any) -> list[Answer]:
    return list(decode(pair, prompts, rule_for, dataclasses.replace(HOW, **changes)))


@torch.no_grad()
def by_hand(pair: Any, prompt: Sequence[int], threshold: float) -> tuple[list[int], list[bool]]:
    """Token by token, everything computed anew, without padding."""
    ids, writers = list(prompt), []
    for _ in range(HOW.max_new_tokens):
        whole = torch.tensor([ids])
        read = pair.base.network(input_ids=whole, output_hidden_states=True)
        own, hidden = read.logits[0, -1], read.hidden_states[-1][0, -1]
        asks = torch.sigmoid(pair.base.row(hidden))[0] > threshold
        other = pair.assistant.model.network(input_ids=whole).logits[0, -1]
        ids.append(int((other if asks else own).argmax()))
        writers.append(bool(asks))
        if ids[-1] in pair.ends:
            break
    return ids[len(prompt) :], writers


@pytest.mark.parametrize("threshold", ETAS)
def test_caches_batches_and_padding_change_nothing(pair: Pair, prompts: Any, threshold: float) -> None:
    answers = written(pair, prompts, eta(threshold))
    for prompt, answer in zip(prompts, answers, strict=True):
        assert (answer.tokens, answer.by_assistant) == by_hand(pair, prompt, threshold)
    for changes in ({"use_cache": False}, {"batch_size": 1}, {"batch_size": 3}):
        others = written(pair, prompts, eta(threshold), **changes)
        for answer, other in zip(answers, others, strict=True):
            assert (answer.tokens, answer.by_assistant, answer.text) == (other.tokens, other.by_assistant, other.text)
            assert answer.deferral == pytest.approx(other.deferral, abs=1e-5)
    if 0 < threshold < 1:
        assert {True, False} == {one for answer in answers for one in answer.by_assistant}, "both have written"


def test_a_threshold_beyond_all_is_one_model_alone(pair: Pair, prompts: Any) -> None:
    for threshold, network in ((2.0, pair.base.network), (-1.0, pair.assistant.model.network)):  # type: ignore[attr-defined]
        for prompt, answer in zip(prompts, written(pair, prompts, eta(threshold)), strict=True):
            alone = network.generate(torch.tensor([prompt]), max_new_tokens=14, do_sample=False, pad_token_id=0)
            assert answer.tokens == alone[0, len(prompt) :].tolist()
            assert set(answer.by_assistant) == {threshold < 0}


def test_the_assistant_reads_all_that_is_new_when_it_is_asked(pair: Pair, prompts: Any) -> None:
    [alone] = written(pair, prompts[:1], eta(2.0))
    assert (alone.calls, alone.computed) == (0, 0)
    [mixed] = written(pair, prompts[:1], eta(0.5))
    last = len(mixed.by_assistant) - mixed.by_assistant[::-1].index(True)
    assert mixed.calls == sum(mixed.by_assistant)
    assert mixed.computed == len(prompts[0]) + last - 1, "each token once, up to the last that it was asked for"


def test_deferral_falls_as_eta_rises_on_the_same_texts(pair: Pair, prompts: Any) -> None:
    ids = torch.tensor([prompts[1]])
    output = pair.base(ids, torch.ones_like(ids))
    rules = [Above(SCORES["deferral"], value) for value in ETAS]
    chosen = [rule(output.logits[0], output.deferral[0]) for rule in rules]
    assert all((one <= other).all() for other, one in itertools.pairwise(chosen))
    assert chosen[0].all() and not chosen[-1].any()


def test_composed_tokens_are_the_likeliest_of_the_mixture(pair: Any, prompts: Any) -> None:
    [answer] = written(pair, prompts[:1], eta(2.0), compose=True)
    ids = torch.tensor([[*prompts[0], *answer.tokens]])
    mask = torch.ones_like(ids)
    with torch.no_grad():
        own, other = pair.base(ids, mask), pair.assistant.model(ids, mask)
    asks = torch.sigmoid(own.deferral)[..., None]
    mixed = (1 - asks) * own.logits.softmax(-1) + asks * other.logits.softmax(-1)
    first = len(prompts[0]) - 1
    assert answer.tokens == mixed[0, first:-1].argmax(-1).tolist()
    assert answer.calls == len(answer.tokens)


def test_random_deferral_has_its_rate_and_does_not_depend_on_the_batch(pair: Pair, prompts: Any) -> None:
    def at_random(rows: Sequence[int]) -> AtRandom:
        return AtRandom(0.3, [(0, row) for row in rows])

    many = written(pair, list(prompts) * 4, at_random)
    alone = written(pair, list(prompts) * 4, at_random, batch_size=1)
    assert [one.by_assistant for one in many] == [one.by_assistant for one in alone]
    tokens = [one for answer in many for one in answer.by_assistant]
    assert sum(tokens) / len(tokens) == pytest.approx(0.3, abs=4 * (0.21 / len(tokens)) ** 0.5)


def test_entropy_needs_no_row(models: dict[str, Any], pair: Pair, prompts: Any, tokenizer: Any) -> None:
    from prdp.language.models import LanguageModel

    plain = dataclasses.replace(pair, base=LanguageModel(models["base"].network, len(tokenizer)))

    def rule_for(rows: Sequence[int]) -> Above:
        return Above(SCORES["entropy"], 2.0)

    answers, again = (written(one, prompts, rule_for) for one in (plain, pair))
    assert [one.by_assistant for one in answers] == [one.by_assistant for one in again]
    assert {True, False} == {one for answer in answers for one in answer.by_assistant}


def test_draws_follow_the_probabilities_and_the_row_s_own_generator() -> None:
    logits = torch.tensor([[0.5, 0.2, 0.3]]).log().expand(2000, 3)
    everyone = torch.ones(2000, dtype=torch.bool)
    drawn = Sampled(1.0, 1.0, [(0, row) for row in range(2000)])(logits, logits, everyone)
    shares = torch.bincount(drawn, minlength=3) / 2000
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.2, 0.3]), atol=0.045, rtol=0)
    cut = Sampled(1.0, 0.6, [(0, row) for row in range(2000)])(logits, logits, everyone)
    assert set(cut.tolist()) == {0, 2}, "the likeliest that have .6 together"
    cold = Sampled(1e-3, 1.0, [(0, row) for row in range(2000)])(logits, logits, everyone)
    assert set(cold.tolist()) == {0}


def test_sampled_texts_do_not_depend_on_the_batch(pair: Pair, prompts: Any) -> None:
    texts = [
        [one.tokens for one in written(pair, prompts, eta(0.5), temperature=1.0, batch_size=size, seed=seed)]
        for size, seed in ((4, 0), (1, 0), (4, 1))
    ]
    assert texts[0] == texts[1] != texts[2]


def test_a_stream_tells_the_tokens_of_the_whole(pair: Pair, prompts: Any) -> None:
    [answer] = written(pair, prompts[1:2], eta(0.5))
    told = list(stream(pair, prompts[1], Above(SCORES["deferral"], 0.5), HOW))
    assert told == list(zip(answer.tokens, answer.by_assistant, strict=True))


def test_prompts_without_room_for_an_answer_are_refused(pair: Pair) -> None:
    with pytest.raises(StartError, match=r"max_new_tokens=14: prompt 2 has 51 tokens; .* more than the 64"):
        written(pair, [(1, 5), (1,) * 51], eta(0.5))


def test_the_library_s_generate_takes_a_pair(pair: Any, prompts: Any) -> None:
    rule = Above(SCORES["deferral"], 0.5)
    answers = written(pair, prompts, eta(0.5))
    from prdp.language.reading import left_padded

    ids, mask = left_padded(prompts, 0)
    network = pair.base.network
    tokens = network.generate(
        ids, attention_mask=mask, custom_generate=custom_generate(pair, rule), max_new_tokens=14, do_sample=False
    )
    for row, answer in zip(tokens[:, ids.shape[1] :].tolist(), answers, strict=True):
        assert row[: len(answer.tokens)] == answer.tokens and set(row[len(answer.tokens) :]) <= {0}
    forbidden = answers[0].tokens[0]
    others = network.generate(
        ids[:1], attention_mask=mask[:1], custom_generate=custom_generate(pair, rule), max_new_tokens=14,
        do_sample=False, bad_words_ids=[[forbidden]],
    )  # fmt: skip
    assert forbidden not in others[0, ids.shape[1] :], "processors reach both models"
    with pytest.raises(ValueError, match="another model than the pair's base"):
        pair.assistant.model.network.generate(ids, custom_generate=custom_generate(pair, rule), max_new_tokens=2)


def test_constant_rules() -> None:
    logits = torch.zeros(2, 3)
    assert Constant(True)(logits, logits[:, 0]).tolist() == [True, True]
    assert Constant(False)(logits, logits[:, 0]).tolist() == [False, False]
