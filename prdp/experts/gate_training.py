"""Gates learn by the denoising error of images, beside a term that keeps all experts in use."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from prdp.diffusion.process import Draws, denoising_error
from prdp.experts.gate import Mixture, balance, entropy, usage
from prdp.support.errors import ConfigError
from prdp.types import Float32

if TYPE_CHECKING:
    from prdp.diffusion.conditions import Conditions

_GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class GateBatch:
    """Images to learn from.

    Attributes:
        latents: float32 [b, C, h, w], what the images are decoded from.
        conditions: of their prompts, b rows.
    """

    latents: Float32
    conditions: Conditions


def train_gate(
    policy: Any,
    mixture: Mixture,
    batches: Iterator[GateBatch],
    *,
    steps: int,
    learning_rate: float,
    balance_weight: float,
    seed: int,
) -> Iterator[dict[str, Any]]:
    """Learn step by step: AdamW without decay on the mean denoising error + weight * `balance`; unguided.

    Args:
        policy: whose network holds the mixture; nothing else of it learns.
        batches: one a step is taken.
        steps: of the optimizer.
        learning_rate: constant.
        balance_weight: of the term.
        seed: of times and noise.

    Yields:
        The metrics of each step; usage is by the experts' names.

    Raises:
        ConfigError: a loss that is not finite.
    """
    optimizer = torch.optim.AdamW(mixture.parameters.values(), lr=learning_rate, weight_decay=0.0)
    for step in range(steps):
        error = _error(policy, next(batches), seed, step)
        said = mixture.said()
        term = balance(said)
        loss = error + balance_weight * term
        if not torch.isfinite(loss):
            raise ConfigError(
                f"gate.learning_rate={learning_rate:g}: at step {step} the loss is {float(loss)}, expected a finite "
                "one; a smaller rate may help, and float32 where half precision overflows"
            )
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(list(mixture.parameters.values()), _GRADIENT_NORM)
        optimizer.step()
        shares = dict(zip(mixture.names, usage(said).tolist(), strict=True))
        yield {
            "step": step,
            "denoising_error": float(error.detach()),
            "balance": float(term.detach()),
            "entropy": entropy(said),
            "grad_norm": float(norm),
            "usage": shares,
        }


@torch.no_grad()
def average_gates(
    policy: Any, mixture: Mixture, batches: Iterator[GateBatch], *, count: int, seed: int
) -> dict[str, torch.Tensor]:
    """Gate -> its mean weights [M] over `count` batches, at times and noise of their own."""
    totals: dict[str, torch.Tensor] = {}
    for number in range(count):
        _error(policy, next(batches), seed + 1, number)
        for path, weights in mixture.said().items():
            mean = weights.mean(0).cpu().double()
            totals[path] = totals[path] + mean if path in totals else mean
    return {path: value / count for path, value in totals.items()}


def _error(policy: Any, batch: GateBatch, seed: int, step: int) -> torch.Tensor:
    """Mean squared error of the outputs for a batch that is noised once, at times of pretraining."""
    latents = torch.from_numpy(batch.latents).to(policy.device)
    rows = np.arange(len(latents))
    draws = Draws(policy.process, seed, step)
    times, noise = draws.cells(rows, np.zeros_like(rows), np.zeros_like(rows), tuple(latents.shape[1:]))
    noised, target = policy.process.noised(latents, times, torch.from_numpy(noise).to(latents))
    output = policy.output(noised, torch.from_numpy(times).to(latents), batch.conditions, 1.0)
    return denoising_error(output, target).mean()
