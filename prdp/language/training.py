"""The base learns when to defer: a row of the head by weak labels, then base and row by the marginal likelihood."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prdp.checkpoints.unfinished import optimizer_tensors, put_into_optimizer
from prdp.language.deferral import gold_log_probs, label_loss, mixture_loss, weak_labels
from prdp.language.models import DeferringModel
from prdp.language.reading import right_padded
from prdp.language.scores import ScoredExample
from prdp.support.errors import ConfigError

_GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class Batch:
    """Examples that are read in one pass; columns are positions behind which a token is predicted.

    Attributes:
        ids, mask: int64 [b, n + 1].
        gold: the token behind each column, int64 [b, n].
        answers: bool [b, n], where that is a token of the answer.
        log_probs: of the assistant there, float32 [b, n]; 0 elsewhere.
        tops: its likeliest tokens, int64 [b, n].
    """

    ids: Tensor
    mask: Tensor
    gold: Tensor
    answers: Tensor
    log_probs: Tensor
    tops: Tensor

    @classmethod
    def of(cls, examples: Sequence[ScoredExample], device: torch.device) -> Batch:
        """From examples."""
        ids, mask = right_padded([one.example.prompt + one.example.answer for one in examples], 0)
        answers = torch.zeros(ids.shape[0], ids.shape[1] - 1, dtype=torch.bool)
        log_probs, tops = torch.zeros(answers.shape), torch.zeros(answers.shape, dtype=torch.long)
        for row, one in enumerate(examples):
            part = slice(len(one.example.prompt) - 1, len(one.example.prompt) + len(one.example.answer) - 1)
            answers[row, part] = True
            log_probs[row, part] = torch.from_numpy(np.asarray(one.scored.log_probs, np.float32))
            tops[row, part] = torch.from_numpy(np.asarray(one.scored.tops, np.int64))
        return cls(*(part.to(device) for part in (ids, mask, ids[:, 1:], answers, log_probs, tops)))


@dataclass(frozen=True)
class Learning:
    """How something is learned.

    Attributes:
        steps: of the optimizer.
        batch_size: examples a step.
        learning_rate: highest, of the base; rises over `warm_up` of the steps, then falls to 0 in a line.
        row_learning_rate: highest, of the deferral row.
        warm_up: share of the steps.
        seed: of the order of examples.
    """

    steps: int
    batch_size: int
    learning_rate: float
    row_learning_rate: float
    warm_up: float = 0.04
    seed: int = 0


class Progress:
    """Lets learning begin behind its first step, and tells what it goes on from.

    Args:
        first: steps that were taken before.
        tensors: what `tensors` gave behind them.
    """

    def __init__(self, first: int = 0, tensors: Mapping[str, Tensor] | None = None) -> None:
        self.first, self._given = first, tensors or {}
        self._optimizer: torch.optim.Optimizer | None = None

    def begin(self, optimizer: torch.optim.Optimizer) -> None:
        """Give an optimizer its state of before."""
        put_into_optimizer(optimizer, self._given)
        self._optimizer = optimizer

    def tensors(self) -> dict[str, Tensor]:
        """The state of the optimizer, and of the generator that layers drop out by."""
        assert self._optimizer is not None, "nothing was learned yet"
        return {**optimizer_tensors(self._optimizer), "generator": torch.get_rng_state()}


def learn_labels(
    model: DeferringModel,
    data: Sequence[ScoredExample],
    how: Learning,
    kind: str,
    positive_weight: float,
    progress: Progress | None = None,
) -> Iterator[dict[str, float]]:
    """Learn the row alone, by weak labels of what the base and the assistant get right.

    Args:
        kind: see `weak_labels`.
        positive_weight: see `label_loss`.

    Yields:
        loss and share of labels that are true, step by step.
    """
    progress = progress or Progress()
    with _learning(model, how, False, progress) as take:
        for batch in _batches(data, how, model.device, progress.first):
            logits, deferral = _read(model, batch)
            chosen = batch.answers
            labels = weak_labels(kind, batch.gold[chosen], logits.argmax(-1)[chosen], batch.tops[chosen])
            loss = label_loss(deferral[chosen], labels, positive_weight)
            yield {**take(loss), "labels": float(labels.float().mean())}


def learn_mixture(
    model: DeferringModel,
    data: Sequence[ScoredExample],
    how: Learning,
    cost: float,
    base_learns: bool,
    progress: Progress | None = None,
) -> Iterator[dict[str, float]]:
    """Learn by the marginal likelihood of the answers; see `mixture_loss`.

    Args:
        base_learns: whether those weights of the base that are not frozen learn beside the row.

    Yields:
        loss and mean probability of deferral, step by step.
    """
    progress = progress or Progress()
    with _learning(model, how, base_learns, progress) as take:
        for batch in _batches(data, how, model.device, progress.first):
            logits, deferral = _read(model, batch)
            base = gold_log_probs(logits, batch.gold)
            loss = mixture_loss(deferral, base, batch.log_probs, batch.answers, cost)
            share = float(torch.sigmoid(deferral.detach()[batch.answers]).mean())
            yield {**take(loss), "deferral": share}


def learn_language(
    model: DeferringModel, data: Sequence[ScoredExample], how: Learning, progress: Progress | None = None
) -> Iterator[dict[str, float]]:
    """Learn the answers without an assistant, by their mean negative log-likelihood: the baseline of a fine-tuned base.

    Yields:
        the loss, step by step.
    """
    progress = progress or Progress()
    with _learning(model, how, True, progress) as take:
        for batch in _batches(data, how, model.device, progress.first):
            logits, _ = _read(model, batch)
            yield take(-gold_log_probs(logits, batch.gold)[batch.answers].mean())


def _read(model: DeferringModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits [b, n, V] and d [b, n] behind every token but the last."""
    output = model(batch.ids[:, :-1], batch.mask[:, :-1])
    assert output.deferral is not None
    return output.logits, output.deferral


def _batches(data: Sequence[ScoredExample], how: Learning, device: torch.device, first: int) -> Iterator[Batch]:
    """Batches number `first` to `how.steps` of examples in an order drawn anew for every pass over the data."""
    rng = np.random.default_rng((how.seed, 3))
    order: list[int] = []
    for number in range(how.steps):
        while len(order) < how.batch_size:
            order += rng.permutation(len(data)).tolist()
        if number >= first:
            yield Batch.of([data[place] for place in order[: how.batch_size]], device)
        del order[: how.batch_size]


@contextlib.contextmanager
def _learning(
    model: DeferringModel, how: Learning, base_learns: bool, progress: Progress
) -> Iterator[Callable[[Tensor], dict[str, float]]]:
    """A function that takes a step by a loss; what does not learn is frozen in the block, and has no graph."""
    network = [value for value in model.network.parameters() if value.requires_grad]
    for value in network:
        value.requires_grad_(base_learns)
    groups: list[dict[str, Any]] = [{"params": list(model.row.parameters()), "lr": how.row_learning_rate}]
    if base_learns:
        groups.append({"params": network, "lr": how.learning_rate})
    for group in groups:
        group["initial_lr"] = group["lr"]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    progress.begin(optimizer)
    rising = max(1.0, how.warm_up * how.steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / rising, (how.steps - step) / max(1.0, how.steps - rising)),
        last_epoch=progress.first - 1,
    )
    learned = [value for group in groups for value in group["params"]]

    def take(loss: Tensor) -> dict[str, float]:
        if not torch.isfinite(loss):
            raise ConfigError(f"the loss is {float(loss.detach())}; a smaller learning_rate may help")
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(learned, _GRADIENT_NORM)
        optimizer.step()
        schedule.step()
        return {"loss": float(loss.detach()), "grad_norm": float(norm)}

    model.train(base_learns)
    try:
        yield take
    finally:
        model.eval()
        for value in network:
            value.requires_grad_(True)
