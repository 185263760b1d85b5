"""The row alone, base and row, an adapter: what learns, what stays, and that losses fall."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from prdp.language.assistants import LocalAssistant
from prdp.language.deferral import gold_log_probs, log_likelihood
from prdp.language.records import encode_all
from prdp.language.scores import ScoredExample
from prdp.language.shapes_task import records
from prdp.language.training import Batch, Learning, learn_labels, learn_language, learn_mixture

HOW = Learning(steps=8, batch_size=8, learning_rate=1e-2, row_learning_rate=5e-2, seed=0)


@pytest.fixture(scope="module")
def data(models: dict[str, Any], tokenizer: Any) -> list[ScoredExample]:
    examples = encode_all(tokenizer, records("train", 12, seed=0), 64)
    scored = LocalAssistant(models["assistant"], "large", "", batch_size=5).score(examples)
    return [ScoredExample(one, two) for one, two in zip(examples, scored, strict=True)]


@pytest.fixture
def model(models: dict[str, Any]) -> Any:
    return copy.deepcopy(models["base"])


def state(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def moved(model: Any, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def test_a_batch_has_scores_where_answers_are(data: list[ScoredExample], tokenizer: Any) -> None:
    batch = Batch.of(data[:3], torch.device("cpu"))
    for row, one in enumerate(data[:3]):
        where = batch.answers[row]
        assert batch.gold[row][where].tolist() == list(one.example.answer)
        np.testing.assert_array_equal(batch.log_probs[row][where].numpy(), one.scored.log_probs)
        assert where.nonzero()[0].item() == len(one.example.prompt) - 1
    assert tokenizer.eos_token_id == batch.gold[0][batch.answers[0]][-1]


def test_labels_and_head_mode_leave_the_base_alone(model: Any, data: list[ScoredExample]) -> None:
    before = state(model)
    for made in (
        learn_labels(model, data, HOW, "base_wrong", 1.0),
        learn_mixture(model, data, HOW, 0.0, base_learns=False),
    ):
        losses = [one["loss"] for one in made]
        assert len(losses) == 8 and np.mean(losses[-3:]) < losses[0]
        assert moved(model, before) == {"row.weight", "row.bias"}
    assert all(value.requires_grad and value.grad is None for value in model.network.parameters())


def test_base_and_row_learn_together(model: Any, data: list[ScoredExample]) -> None:
    before = state(model)
    made = list(learn_mixture(model, data, HOW, 0.3, base_learns=True))
    assert made[-1]["loss"] < made[0]["loss"]
    assert 0 < made[-1]["deferral"] < 1
    assert {"row.weight", "network.lm_head.weight", "network.model.embed_tokens.weight"} <= moved(model, before)


def test_the_first_loss_is_that_of_the_examples(model: Any, data: list[ScoredExample]) -> None:
    how = Learning(steps=1, batch_size=len(data), learning_rate=0.0, row_learning_rate=0.0)
    [first] = learn_mixture(model, data, how, cost=0.0, base_learns=True)
    total, count = 0.0, 0
    for one in data:
        ids = torch.tensor([one.example.prompt + one.example.answer])
        with torch.no_grad():
            output = model(ids, torch.ones_like(ids))
        part = slice(len(one.example.prompt) - 1, -1)
        base = gold_log_probs(output.logits[0, part], torch.tensor(one.example.answer))
        total -= float(log_likelihood(output.deferral[0, part], base, torch.tensor(one.scored.log_probs)).sum())
        count += len(one.example.answer)
    assert first["loss"] == pytest.approx(total / count, rel=1e-5)


def test_an_adapter_learns_and_nothing_else_of_the_base(model: Any, data: list[ScoredExample]) -> None:
    from peft import LoraConfig, get_peft_model

    from prdp.language.models import DeferringModel

    adapter = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = DeferringModel(get_peft_model(model.network, adapter), model.vocabulary)
    before = state(adapted)
    made = list(learn_mixture(adapted, data, HOW, 0.0, base_learns=True))
    assert made[-1]["loss"] < made[0]["loss"]
    names = moved(adapted, before)
    assert any("lora_B" in name for name in names)
    assert {name for name in names if "lora" not in name} == {"row.weight", "row.bias"}


def test_a_base_alone_learns_the_answers(model: Any, data: list[ScoredExample]) -> None:
    row = model.row.weight.clone()
    losses = [one["loss"] for one in learn_language(model, data, HOW)]
    assert losses[-1] < losses[0]
    assert torch.equal(row, model.row.weight)


def test_a_loss_that_is_not_finite_stops(model: Any, data: list[ScoredExample]) -> None:
    with torch.no_grad():
        model.network.lm_head.weight.mul_(float("nan"))
    with pytest.raises(ValueError, match="the loss is nan; a smaller learning_rate may help"):
        next(learn_mixture(model, data, HOW, 0.0, base_learns=True))
