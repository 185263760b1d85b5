"""A student learns, from chains that its teacher drew without noise, to say in one pass where they end."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from prdp.checkpoints.unfinished import optimizer_tensors, put_into_optimizer
from prdp.support.errors import ConfigError
from prdp.support.microbatches import LEARNER_ADVICE, Microbatch, give_back
from prdp.types import Float32, Float64, Int64

if TYPE_CHECKING:
    from prdp.collaboration.settings import DistillConfig
    from prdp.diffusion.conditions import Conditions
    from prdp.diffusion.policy import Policy

_DOMAIN = 0x64697374696C


@dataclass(frozen=True)
class ChainBatch:
    """Chains to learn from.

    Attributes:
        latents: float32 [b, T + 1, C, h, w], before each of T steps and at the end.
        conditions: of their prompts, b rows.
    """

    latents: Float32
    conditions: Conditions


class MovingAverage:
    """Of tensors that learn: average <- decay * average + (1 - decay) * value after each update."""

    def __init__(self, parameters: Mapping[str, torch.Tensor], decay: float) -> None:
        self._parameters, self._decay = parameters, decay
        self.tensors = {name: value.detach().clone() for name, value in parameters.items()}

    @torch.no_grad()
    def move(self) -> None:
        """Take in the values of now."""
        for name, value in self.tensors.items():
            value.lerp_(self._parameters[name].detach(), 1.0 - self._decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The parameters have the average's values in the context."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, value in self.tensors.items():
            parameter = self._parameters[name]
            kept = parameter.detach().clone()
            parameter.copy_(value)
            value.copy_(kept)


def told_end(policy: Policy, latents: torch.Tensor, times: Float64, conditions: Conditions) -> torch.Tensor:
    """The clean latents that the student, without guidance, tells of latents [b, C, h, w] at times [b]."""
    output = policy.output(latents, torch.from_numpy(times).to(latents), conditions, 1.0)
    return policy.process.clean(latents, times, output)


def huber(difference: torch.Tensor, threshold: float) -> torch.Tensor:
    """d^2 / 2 up to the threshold c, c (|d| - c / 2) beyond, divided by c; the mean over all."""
    return torch.nn.functional.huber_loss(difference, torch.zeros_like(difference), delta=threshold) / threshold


def learning_rate(update: int, updates: int, warmup: int, highest: float) -> float:
    """Linear over `warmup` updates, then a cosine that would be 0 at update number `updates`."""
    if update < warmup:
        return highest * (update + 1) / (warmup + 1)
    return highest * 0.5 * (1.0 + math.cos(math.pi * (update - warmup) / (updates - warmup)))


class Distillation:
    """A student that learns update by update; at the end the policy has the weights, averaged where that is said.

    Args:
        policy: starts as the teacher.
        times: float64 [T], of the chains' steps.
        config: target, optimizer, averages.

    Attributes:
        update: number of the next update.
    """

    def __init__(self, policy: Policy, times: Float64, config: DistillConfig) -> None:
        learner, parameters = config.learner, policy.weights.parameters
        self.update = 0
        self._policy, self._times, self._config = policy, times, config
        self._optimizer = torch.optim.AdamW(
            parameters.values(),
            lr=learner.learning_rate,
            betas=(learner.adam_beta1, learner.adam_beta2),
            eps=learner.adam_epsilon,
            weight_decay=learner.weight_decay,
        )
        self._microbatch = Microbatch(
            "learner.microbatch", learner.microbatch, LEARNER_ADVICE, lambda size: give_back()
        )
        asks = config.target.name == "consistency"
        self._asked = MovingAverage(parameters, config.target.ema_decay) if asks else None
        self._written = MovingAverage(parameters, learner.ema_decay) if learner.ema_decay else None

    @property
    def _averages(self) -> dict[str, MovingAverage]:
        return {name: one for name, one in (("asked", self._asked), ("written", self._written)) if one is not None}

    def state(self) -> dict[str, torch.Tensor]:
        """Everything that learning goes on from, but for the number of the update."""
        found = {f"weights/{name}": value for name, value in self._policy.weights.parameters.items()}
        for kind, average in self._averages.items():
            found |= {f"{kind}/{name}": value for name, value in average.tensors.items()}
        return found | optimizer_tensors(self._optimizer)

    @torch.no_grad()
    def go_on(self, state: Mapping[str, torch.Tensor], update: int) -> None:
        """From what `state` gave before an update."""
        for name, value in self._policy.weights.parameters.items():
            value.copy_(state[f"weights/{name}"])
        for kind, average in self._averages.items():
            for name, value in average.tensors.items():
                value.copy_(state[f"{kind}/{name}"])
        put_into_optimizer(self._optimizer, state)
        self.update = update

    def steps(self, batches: Iterator[ChainBatch]) -> Iterator[dict[str, float]]:
        """Learn what is left.

        Args:
            batches: one an update is taken, the first of them for the next update.

        Yields:
            update, loss, learning_rate and grad_norm of each update.

        Raises:
            ConfigError: a loss that is not finite.
        """
        while self.update < self._config.updates:
            found = self._step(next(batches))
            self.update += 1
            yield found
        if self._written is not None:
            with torch.no_grad():
                for name, value in self._written.tensors.items():
                    self._policy.weights.parameters[name].copy_(value)

    def _step(self, batch: ChainBatch) -> dict[str, float]:
        config, learner, update = self._config, self._config.learner, self.update
        rate = learning_rate(update, config.updates, learner.warmup_updates, learner.learning_rate)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        rng = np.random.default_rng((_DOMAIN, config.seed, update))
        steps = rng.integers(len(self._times), size=len(batch.latents))
        work = partial(self._gradient, batch, steps)
        loss = self._microbatch.fitted(work, lambda: len(steps), f"update {update}")
        parameters = list(self._policy.weights.parameters.values())
        norm = torch.nn.utils.clip_grad_norm_(parameters, learner.max_grad_norm)
        if not (math.isfinite(loss) and bool(norm.isfinite())):
            raise ConfigError(f"update {update}: the loss is {loss}; a smaller learner.learning_rate may help")
        self._optimizer.step()
        for average in self._averages.values():
            average.move()
        return {"update": update, "loss": loss, "learning_rate": rate, "grad_norm": float(norm)}

    def _gradient(self, batch: ChainBatch, steps: Int64) -> float:
        """Gather the gradient, from zero; the loss.

        Args:
            steps: int64 [b], of each chain.
        """
        self._optimizer.zero_grad()
        loss, size = 0.0, self._microbatch.size
        for begin in range(0, len(steps), size):
            rows = np.arange(begin, min(begin + size, len(steps)))
            asked, threshold = self._asked, self._config.target.huber
            part = _loss(self._policy, batch, rows, steps[rows], self._times, asked, threshold)
            part = part * len(rows) / len(steps)
            part.backward()  # type: ignore[no-untyped-call]
            loss += float(part.detach())
        return loss


def _loss(
    policy: Policy,
    batch: ChainBatch,
    rows: Int64,
    steps: Int64,
    times: Float64,
    asked: MovingAverage | None,
    threshold: float,
) -> torch.Tensor:
    """Huber's loss of some rows of a batch, each at a step of its chain."""
    conditions = batch.conditions[rows]
    target = _target(policy, batch, rows, steps, times, asked)
    said = told_end(policy, _on(policy, batch.latents[rows, steps]), times[steps], conditions)
    return huber(said - target, threshold)


@torch.no_grad()
def _target(
    policy: Policy, batch: ChainBatch, rows: Int64, steps: Int64, times: Float64, asked: MovingAverage | None
) -> torch.Tensor:
    """Where the chains end; or, before their last step, what the average says at the next one."""
    ends = _on(policy, batch.latents[rows, -1])
    within = np.flatnonzero(steps + 1 < len(times))
    if asked is None or not len(within):
        return ends
    further = steps[within] + 1
    latents = _on(policy, batch.latents[rows[within], further])
    with asked.applied():
        ends[torch.from_numpy(within)] = told_end(policy, latents, times[further], batch.conditions[rows[within]])
    return ends


def _on(policy: Any, latents: Float32) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(latents)).to(policy.device)
