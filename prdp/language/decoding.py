"""Two models write a batch of texts together: at every token the base writes, or leaves it to the assistant.

Keys and values of both stay. The assistant reads nothing until it is asked, and then all that is new in one pass.
Speculative decoding is another thing: it keeps the larger model's distribution. Here the larger one is asked only where
the base wants it to be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from prdp.language.assistants import Assistant, Session
from prdp.language.choosing import Chooser, Likeliest, Rule, Sampled
from prdp.language.models import LanguageModel
from prdp.language.reading import Reader, left_padded
from prdp.support.errors import StartError


@dataclass(frozen=True)
class Pair:
    """A base and its assistant.

    Attributes:
        base: writes; a `DeferringModel` where its own row decides who does.
        assistant: is asked.
        tokenizer: of both.
        ends: tokens that end a text.
        limit: tokens that the base reads at most.
    """

    base: LanguageModel
    assistant: Assistant
    tokenizer: Any
    ends: frozenset[int]
    limit: int | None = None

    @property
    def pad(self) -> int:
        """A token for columns that are masked."""
        return next(iter(self.ends))


@dataclass(frozen=True)
class Decoding:
    """How texts are decoded.

    Attributes:
        max_new_tokens: of a text.
        batch_size: texts at a time.
        temperature: 0 takes the likeliest tokens.
        top_p: of draws.
        compose: whether every token comes from the mixture of both models, which asks the assistant at every token.
        use_cache: whether the base keeps keys and values.
        seed: of draws.
    """

    max_new_tokens: int = 256
    batch_size: int = 8
    temperature: float = 0.0
    top_p: float = 1.0
    compose: bool = False
    use_cache: bool = True
    seed: int = 0


@dataclass(frozen=True)
class Step:
    """A token of every row that is not finished.

    Attributes:
        tokens: int64 [b]; padding of finished rows.
        by_assistant: bool [b], whether the assistant wrote it.
        deferral: sigmoid(d), float32 [b].
        alive: bool [b], whether the row was not finished.
    """

    tokens: Tensor
    by_assistant: Tensor
    deferral: Tensor
    alive: Tensor


@dataclass
class Answer:
    """A text that was written.

    Attributes:
        tokens: with the one that ends it, where it came to an end.
        by_assistant: of each token, whether the assistant wrote it.
        deferral: of each token, the probability that it was to.
        calls: of the assistant.
        computed: tokens that the assistant computed.
        text: without tokens that are no text.
    """

    tokens: list[int] = field(default_factory=list)
    by_assistant: list[bool] = field(default_factory=list)
    deferral: list[float] = field(default_factory=list)
    calls: int = 0
    computed: int = 0
    text: str = ""

    @property
    def rate(self) -> float:
        """Share of tokens that the assistant wrote."""
        return sum(self.by_assistant) / max(1, len(self.tokens))


RuleFor = Callable[[Sequence[int]], Rule]
"""The rule of a batch, from the numbers of its rows."""


@torch.no_grad()
def steps(
    pair: Pair,
    ids: Tensor,
    mask: Tensor,
    rule: Rule,
    chooser: Chooser,
    stop: Callable[[Tensor], Tensor],
    limit: int,
    compose: bool = False,
    use_cache: bool = True,
    session: Session | None = None,
) -> Iterator[Step]:
    """Write token by token.

    Args:
        ids, mask: prompts int64 [b, n], padded on the left.
        stop: from all tokens so far [b, n], which rows are finished: bool [b].
        limit: steps at most.
        compose, use_cache: see `Decoding`.
        session: of the assistant; a new one unless given.

    Yields:
        each step as soon as it is written.
    """
    base, session = Reader(pair.base, use_cache), session or pair.assistant.session(len(ids))
    ids, mask = ids.to(pair.base.device), mask.to(pair.base.device)
    base.read(ids, mask)
    session.read(ids, mask)
    alive = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
    for _ in range(limit):
        output = base.output()
        logits = output.logits[:, -1].float()
        d = output.deferral[:, -1] if output.deferral is not None else torch.zeros_like(logits[:, 0])
        if compose:
            own = torch.log_softmax(logits, -1) + functional.logsigmoid(-d)[:, None]
            others = torch.log_softmax(session.logits(alive).to(logits), -1) + functional.logsigmoid(d)[:, None]
            tokens = chooser(ids, torch.logaddexp(own, others), alive)
            deferred = (others > own).gather(1, tokens[:, None])[:, 0] & alive
        else:
            deferred = rule(logits, d) & alive
            tokens = chooser(ids, logits, alive & ~deferred)
            if deferred.any():
                tokens = torch.where(deferred, session.tokens(deferred, ids, chooser).to(tokens), tokens)
        tokens = torch.where(alive, tokens, pair.pad)
        yield Step(tokens, deferred, torch.sigmoid(d), alive)
        ids = torch.cat([ids, tokens[:, None]], 1)
        column = alive.long()[:, None]
        alive = alive & ~stop(ids)
        if not alive.any():
            return
        base.read(tokens[:, None], column)
        session.read(tokens[:, None], column)


def stream(pair: Pair, prompt: Sequence[int], rule: Rule, how: Decoding) -> Iterator[tuple[int, bool]]:
    """Token and whether the assistant wrote it, of one text, as they are written."""
    ids, mask = left_padded([prompt], pair.pad)
    made = steps(
        pair, ids, mask, rule, _chooser(how, [0]), _stops(pair), how.max_new_tokens, how.compose, how.use_cache
    )
    for step in made:
        yield int(step.tokens[0]), bool(step.by_assistant[0])


def decode(pair: Pair, prompts: Sequence[Sequence[int]], rule_for: RuleFor, how: Decoding) -> Iterator[Answer]:
    """Answers to prompts, in order, batch by batch.

    Args:
        prompts: tokens.
        rule_for: the rule of a batch, from the numbers of its prompts.

    Raises:
        StartError: a prompt with which an answer might be longer than one of the models reads, before anything is
            written; an assistant whose distribution is not known, where it is to be mixed.
    """
    check_lengths(pair, prompts, how.max_new_tokens)
    if how.compose and not pair.assistant.gives_logits:
        raise StartError("compose=true: needs the assistant's whole distribution, which an endpoint does not give")
    for first in range(0, len(prompts), how.batch_size):
        yield from _batch(pair, range(first, min(first + how.batch_size, len(prompts))), prompts, rule_for, how)


def check_lengths(pair: Pair, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    """Refuse prompts that leave no room for an answer; see `decode`."""
    limits = [one for one in (pair.limit, pair.assistant.limit) if one is not None]
    for number, prompt in enumerate(prompts, start=1):
        if limits and len(prompt) + max_new_tokens > min(limits):
            raise StartError(
                f"max_new_tokens={max_new_tokens}: prompt {number} has {len(prompt)} tokens; together that is more "
                f"than the {min(limits)} that both models read"
            )


def _batch(pair: Pair, rows: range, prompts: Sequence[Sequence[int]], rule_for: RuleFor, how: Decoding) -> list[Answer]:
    ids, mask = left_padded([prompts[row] for row in rows], pair.pad)
    answers = [Answer() for _ in rows]
    session = pair.assistant.session(len(rows))
    chooser, stop = _chooser(how, rows), _stops(pair)
    made = steps(
        pair, ids, mask, rule_for(rows), chooser, stop, how.max_new_tokens, how.compose, how.use_cache, session
    )
    for step in made:
        columns = (step.tokens.tolist(), step.by_assistant.tolist(), step.deferral.tolist(), step.alive.tolist())
        for answer, token, by_assistant, deferral, alive in zip(answers, *columns, strict=True):
            if alive:
                answer.tokens.append(token)
                answer.by_assistant.append(by_assistant)
                answer.deferral.append(deferral)
    for answer, calls, computed in zip(answers, session.calls.tolist(), session.computed.tolist(), strict=True):
        answer.calls, answer.computed = calls, computed
        answer.text = pair.tokenizer.decode(answer.tokens, skip_special_tokens=True)
    return answers


def _chooser(how: Decoding, rows: Sequence[int]) -> Chooser:
    if how.temperature == 0:
        return Likeliest()
    return Sampled(how.temperature, how.top_p, [(how.seed, row) for row in rows])


def _stops(pair: Pair) -> Callable[[Tensor], Tensor]:
    ends = torch.tensor(sorted(pair.ends))
    return lambda ids: torch.isin(ids[:, -1], ends.to(ids.device))
