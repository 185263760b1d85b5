"""The mathematics of deferral: token by token, the base writes or leaves the token to the assistant.

With d the deferral logit at a position, sigmoid(d) is the probability that the assistant writes there, and a gold token
has the probability (1 - sigmoid(d)) p_base + sigmoid(d) p_assistant.

References:
    Shen et al., Learning to Decode Collaboratively with Multiple Language Models, 2024, arXiv 2403.03870.
    Fu et al., R2R: Efficiently Navigating Divergent Reasoning Paths with Small-Large Model Token Routing, 2025, arXiv
    2505.21600, for the labels `divergent`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from prdp.language.settings import LABELS


def log_likelihood(deferral: Tensor, base: Tensor, assistant: Tensor) -> Tensor:
    """log((1 - sigmoid(d)) p_base + sigmoid(d) p_assistant), of any shape.

    Its gradient by d is q - sigmoid(d), with q the `posterior`; by log p_base it is 1 - q, so that the base learns
    little of tokens that the assistant explains better.

    Args:
        deferral: d.
        base, assistant: log-probabilities of the gold token.
    """
    return torch.logaddexp(functional.logsigmoid(-deferral) + base, functional.logsigmoid(deferral) + assistant)


def posterior(deferral: Tensor, base: Tensor, assistant: Tensor) -> Tensor:
    """q, the probability that the assistant has written a token that is known; arguments as of `log_likelihood`."""
    return torch.sigmoid(deferral + assistant - base)


def mixture_loss(deferral: Tensor, base: Tensor, assistant: Tensor, mask: Tensor, cost: float = 0.0) -> Tensor:
    """Mean over the tokens of `mask` of -log-likelihood + cost * sigmoid(d).

    With cost 0 it is the paper's loss. An assistant that is better at every token then draws deferral to 1 everywhere,
    where the base has no gradient any more; the cost, in nats a call, is what a call has to be worth.

    Args:
        deferral, base, assistant: as of `log_likelihood`.
        mask: bool, of the same shape; what the others hold elsewhere does not matter, NaN included.

    Raises:
        ValueError: no token is in the mask.
    """
    if not mask.any():
        raise ValueError("no token to learn from")
    chosen = deferral[mask]
    loss = -log_likelihood(chosen, base[mask], assistant[mask])
    return (loss + cost * torch.sigmoid(chosen)).mean()


def weak_labels(kind: str, gold: Tensor, base: Tensor, assistant: Tensor) -> Tensor:
    """Where the assistant should write, for the start of learning; bool, of the arguments' shape.

    Args:
        kind: assistant_right: its likeliest token is the gold one and the base's is not (the paper's); base_wrong: the
            base's is not; divergent: the two differ, whatever the gold token. R2R then drops those differences that do
            not change how a text goes on, which takes both models' continuations and a judge, and is not done here.
        gold: tokens.
        base, assistant: the likeliest token of each model.

    Raises:
        ValueError: another kind.
    """
    if kind == "assistant_right":
        return (assistant == gold) & (base != gold)
    if kind == "base_wrong":
        return base != gold
    if kind == "divergent":
        return assistant != base
    raise ValueError(f"labels={kind}: must be one of {', '.join(LABELS)}")


def label_loss(deferral: Tensor, labels: Tensor, positive_weight: float) -> Tensor:
    """Mean binary cross-entropy of d with labels; those that are true count `positive_weight` times.

    Args:
        deferral: float [n].
        labels: bool [n].
    """
    weight = torch.as_tensor(positive_weight, dtype=deferral.dtype, device=deferral.device)
    return functional.binary_cross_entropy_with_logits(deferral, labels.to(deferral.dtype), pos_weight=weight)


def gold_log_probs(logits: Tensor, gold: Tensor) -> Tensor:
    """Log-probabilities of tokens.

    Args:
        logits: [..., V] over the vocabulary, without the deferral row.
        gold: tokens [...].

    Returns:
        float32 [...].
    """
    return torch.log_softmax(logits.float(), -1).gather(-1, gold[..., None])[..., 0]


def entropy(logits: Tensor) -> Tensor:
    """Of the next token, in nats: float32 [...] for logits [..., V]."""
    log_probs = torch.log_softmax(logits.float(), -1)
    return -(log_probs.exp() * log_probs).sum(-1)
