"""Gates learn by the denoising error of images, beside a term that keeps all experts in use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from prdp.checkpoints.unfinished import optimizer_tensors, put_into_optimizer
from prdp.diffusion.process import Draws, denoising_error
from prdp.experts.gate import Mixture, balance, entropy, usage
from prdp.support.errors import ConfigError
from prdp.types import Float32

if TYPE_CHECKING:
    from prdp.diffusion.conditions import Conditions

_GRADIENT_NORM = 1.0
_GATES = "gates/"


@dataclass(frozen=True)
class GateBatch:
    """Images to learn from.

    Attributes:
        latents: float32 [b, C, h, w], what the images are decoded from.
        conditions: of their prompts, b rows.
    """

    latents: Float32
    conditions: Conditions


class GateTraining:
    """Gates that learn step by step: AdamW without decay on the mean denoising error + weight * `balance`; unguided.

    Times and noise follow the seed and the number of the step, so that learning that goes on is that of one piece.

    Args:
        policy: whose network holds the mixture; nothing else of it learns.
        steps: of the optimizer, in all.
        learning_rate: constant.
        balance_weight: of the term.
        seed: of times and noise.

    Attributes:
        step: number of the next step.
    """

    def __init__(
        self, policy: Any, mixture: Mixture, *, steps: int, learning_rate: float, balance_weight: float, seed: int
    ) -> None:
        self.step = 0
        self._policy, self._mixture = policy, mixture
        self._steps, self._balance_weight, self._seed = steps, balance_weight, seed
        self._rate = learning_rate
        self._optimizer = torch.optim.AdamW(mixture.parameters.values(), lr=learning_rate, weight_decay=0.0)

    def state(self) -> dict[str, torch.Tensor]:
        """Everything that learning goes on from, but for the number of the step."""
        gates = {f"{_GATES}{name}": value for name, value in self._mixture.parameters.items()}
        return gates | optimizer_tensors(self._optimizer)

    def go_on(self, state: Mapping[str, torch.Tensor], step: int) -> None:
        """From what `state` gave before a step.

        Raises:
            ValueError: gates that are missing, unknown, of another shape or not finite; names one.
        """
        self._mixture.load(
            {name.removeprefix(_GATES): value for name, value in state.items() if name.startswith(_GATES)}
        )
        put_into_optimizer(self._optimizer, state)
        self.step = step

    def learn(self, batches: Iterator[GateBatch]) -> Iterator[dict[str, Any]]:
        """Take the steps that are left.

        Args:
            batches: one a step is taken, the first of them for the next step.

        Yields:
            The metrics of each step; usage is by the experts' names.

        Raises:
            ConfigError: a loss or a gradient that is not finite.
        """
        while self.step < self._steps:
            found = self._take(next(batches))
            self.step += 1
            yield found

    def _take(self, batch: GateBatch) -> dict[str, Any]:
        mixture, parameters = self._mixture, list(self._mixture.parameters.values())
        error = _error(self._policy, batch, self._seed, self.step)
        said = mixture.said()
        term = balance(said)
        loss = error + self._balance_weight * term
        self._optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, _GRADIENT_NORM)
        if not (loss.isfinite() and norm.isfinite()):
            raise ConfigError(
                f"gate.learning_rate={self._rate:g}: at step {self.step} the loss is {float(loss.detach())} and its "
                f"gradient {float(norm)}, expected finite ones; a smaller rate may help, and float32 where half "
                "precision overflows"
            )
        self._optimizer.step()
        return {
            "step": self.step,
            "denoising_error": float(error.detach()),
            "balance": float(term.detach()),
            "entropy": entropy(said),
            "grad_norm": float(norm),
            "usage": dict(zip(mixture.names, usage(said).tolist(), strict=True)),
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
