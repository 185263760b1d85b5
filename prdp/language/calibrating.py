"""Where eta lies: quantiles of a score on validation texts, and the one of them at which the task goes best."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from prdp.calibration import Threshold, fit
from prdp.language.choosing import SCORES, Above, Rule
from prdp.language.decoding import Answer, Decoding, Pair, decode
from prdp.language.models import LanguageModel
from prdp.language.reading import right_padded
from prdp.language.records import Example

Metric = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
"""Scores of texts by the answers that are wanted, one each."""


@dataclass(frozen=True)
class Point:
    """How a task goes at a threshold.

    Attributes:
        threshold: and the share of tokens of the true answers that it chooses.
        metric: mean over texts.
        rate: share of tokens that the assistant wrote.
        calls: of the assistant, per text.
    """

    threshold: Threshold
    metric: float
    rate: float
    calls: float


def exact(texts: Sequence[str], answers: Sequence[str]) -> list[float]:
    """1 where a text is the answer, but for white space; else 0."""
    return [float(text.split() == answer.split()) for text, answer in zip(texts, answers, strict=True)]


@torch.no_grad()
def scores_of(model: LanguageModel, examples: Sequence[Example], batch_size: int) -> dict[str, np.ndarray]:
    """Score -> its values at all tokens of the answers, each behind the true ones before it; float64 [n]."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in SCORES}
    for first in range(0, len(examples), batch_size):
        batch = examples[first : first + batch_size]
        ids, mask = (part.to(model.device) for part in right_padded([one.prompt + one.answer for one in batch], 0))
        output = model(ids, mask)
        logits = output.logits.float()
        deferral = output.deferral if output.deferral is not None else torch.zeros_like(logits[..., 0])
        for row, one in enumerate(batch):
            part = slice(len(one.prompt) - 1, len(one.prompt) + len(one.answer) - 1)
            for name, score in SCORES.items():
                found[name].append(score(logits[row, part], deferral[row, part]).double().cpu().numpy())
    return {name: np.concatenate(values) for name, values in found.items()}


def rate_of(answers: Sequence[Answer]) -> float:
    """Share of all tokens that the assistant wrote."""
    return sum(sum(one.by_assistant) for one in answers) / max(1, sum(len(one.tokens) for one in answers))


def curve(
    pair: Pair,
    score: str,
    values: np.ndarray,
    rates: Sequence[float],
    prompts: Sequence[Sequence[int]],
    wanted: Sequence[str],
    metric: Metric,
    how: Decoding,
) -> Iterator[Point]:
    """How a task goes at the thresholds that choose these shares of values.

    Args:
        score: name of one of `SCORES`.
        values: of the score on validation texts.
        prompts, wanted: of the task.
    """
    for rate in rates:
        threshold = fit(values, rate, "above")
        rule = Above(SCORES[score], threshold)
        answers = list(decode(pair, prompts, partial(_always, rule), how))
        quality = metric([one.text for one in answers], wanted)
        calls = float(np.mean([one.calls for one in answers]))
        yield Point(threshold, float(np.mean(quality)), rate_of(answers), calls)


def _always(rule: Rule, rows: Sequence[int]) -> Rule:
    """The rule of every batch."""
    return rule


def best(points: Sequence[Point], largest_rate: float = 1.0) -> Point:
    """The point of the best metric, and of those the one of the lowest rate.

    Args:
        largest_rate: points above it are left out, unless all are.
    """
    allowed = [one for one in points if one.rate <= largest_rate] or list(points)
    return max(allowed, key=lambda one: (one.metric, -one.rate))
