"""The marginal likelihood of deferral, against sums over who may have written each token, and its gradients."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from prdp.language.deferral import (
    entropy,
    gold_log_probs,
    label_loss,
    log_likelihood,
    mixture_loss,
    posterior,
    weak_labels,
)


@pytest.fixture
def parts() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Deferral logits, and log-probabilities of the gold tokens by base and assistant, of 5 tokens."""
    generator = torch.Generator().manual_seed(0)
    deferral = torch.randn(5, dtype=torch.float64, generator=generator)
    base, assistant = torch.rand(2, 5, dtype=torch.float64, generator=generator).clamp(0.01).log()
    return deferral, base, assistant


def test_the_likelihood_is_the_sum_over_all_who_may_have_written(
    parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    deferral, base, assistant = (part.tolist() for part in parts)
    total = 0.0
    for writers in itertools.product((0, 1), repeat=5):
        probability = 1.0
        for token, writer in enumerate(writers):
            asks = 1 / (1 + math.exp(-deferral[token]))
            probability *= asks * math.exp(assistant[token]) if writer else (1 - asks) * math.exp(base[token])
        total += probability
    assert log_likelihood(*parts).sum().item() == pytest.approx(math.log(total), abs=1e-12)
    everywhere = torch.ones(5, dtype=torch.bool)
    assert mixture_loss(*parts, everywhere).item() == pytest.approx(-math.log(total) / 5, abs=1e-12)


def test_gradients_are_the_posterior_beside_the_prior(parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    deferral, base, assistant = (part.clone().requires_grad_() for part in parts)
    (-log_likelihood(deferral, base, assistant)).sum().backward()
    asks, asked = torch.sigmoid(parts[0]), posterior(*parts)
    torch.testing.assert_close(deferral.grad, asks - asked)
    torch.testing.assert_close(base.grad, asked - 1)
    torch.testing.assert_close(assistant.grad, -asked)
    joint = asks * parts[2].exp()
    torch.testing.assert_close(asked, joint / (joint + (1 - asks) * parts[1].exp()))


def test_limits_are_the_two_models_alone(parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    base = parts[1].clone().requires_grad_()
    never = log_likelihood(torch.full((5,), -60.0, dtype=torch.float64), base, parts[2])
    torch.testing.assert_close(never, base)
    always = log_likelihood(torch.full((5,), 60.0, dtype=torch.float64), base, parts[2])
    torch.testing.assert_close(always, parts[2])
    always.sum().backward()
    assert base.grad is not None and base.grad.abs().max() < 1e-20


def test_masked_tokens_count_for_nothing_whatever_they_hold(
    parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    mask = torch.tensor([True, False, True, True, False])
    spoilt = [part.clone() for part in parts]
    for part, value in zip(spoilt, (float("inf"), float("nan"), float("-inf")), strict=True):
        part[~mask] = value
        part.requires_grad_()
    loss = mixture_loss(*spoilt, mask, cost=0.3)
    chosen = [part[mask] for part in parts]
    assert loss.item() == pytest.approx(mixture_loss(*chosen, torch.ones(3, dtype=torch.bool), cost=0.3).item())
    loss.backward()
    for part in spoilt:
        assert part.grad is not None and torch.isfinite(part.grad).all() and not part.grad[~mask].any()
    with pytest.raises(ValueError, match="no token to learn from"):
        mixture_loss(*parts, torch.zeros(5, dtype=torch.bool))


def test_the_cost_is_paid_for_each_call(parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    everywhere = torch.ones(5, dtype=torch.bool)
    more = mixture_loss(*parts, everywhere, cost=0.5) - mixture_loss(*parts, everywhere)
    torch.testing.assert_close(more, 0.5 * torch.sigmoid(parts[0]).mean())


def test_weak_labels() -> None:
    gold, base, assistant = torch.tensor([[1, 1, 1, 1, 1], [1, 2, 2, 3, 2], [1, 1, 2, 4, 3]])
    assert weak_labels("assistant_right", gold, base, assistant).tolist() == [False, True, False, False, False]
    assert weak_labels("base_wrong", gold, base, assistant).tolist() == [False, True, True, True, True]
    assert weak_labels("divergent", gold, base, assistant).tolist() == [False, True, False, True, True]
    with pytest.raises(ValueError, match="labels=better: must be one of assistant_right"):
        weak_labels("better", gold, base, assistant)


def test_true_labels_count_more() -> None:
    loss = label_loss(torch.tensor([0.0, 2.0]), torch.tensor([True, False]), 8.0)
    assert loss.item() == pytest.approx((8 * math.log(2) + math.log1p(math.exp(2))) / 2)


def test_log_probs_and_entropy_of_logits() -> None:
    logits = torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.5, 0.0]]).log()
    torch.testing.assert_close(gold_log_probs(logits, torch.tensor([2, 0])).exp(), torch.tensor([0.7, 0.5]))
    assert entropy(torch.tensor([[0.0, 0.0, 0.0, 0.0]])).item() == pytest.approx(math.log(4))
