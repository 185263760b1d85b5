"""What students are taught, without a model: the loss, both targets, averages and the learning rate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from prdp.collaboration.distillation import (
    ChainBatch,
    Distillation,
    MovingAverage,
    _target,
    huber,
    learning_rate,
    told_end,
)
from prdp.collaboration.settings import DistillConfig, TargetConfig
from prdp.config import LearnerConfig
from prdp.diffusion.conditions import Conditions
from prdp.diffusion.variance_preserving import VariancePreserving

SCHEDULER = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 2e-2, "beta_schedule": "linear"}
TIMES = np.array([999.0, 499.0, 249.0])
CHAINS = np.random.default_rng(0).normal(size=(6, 4, 2, 3, 3)).astype(np.float32)


class Straight:
    """A policy whose epsilon is such that it tells `scale` times the latents' channel means as the clean latents."""

    device = torch.device("cpu")
    process = VariancePreserving(SCHEDULER)

    def __init__(self, scale: float = 0.5) -> None:
        self.scale = torch.nn.Parameter(torch.tensor(scale))
        self.weights: Any = type("Weights", (), {"parameters": {"scale": self.scale}})()

    def output(self, latents: torch.Tensor, times: torch.Tensor, conditions: Any, guidance_scale: float) -> Any:
        assert guidance_scale == 1.0, "students draw without guidance"
        signal, spread = self.process._signal_and_spread(times.double().numpy(), latents)
        return (latents - signal * self.clean(latents)) / spread

    def clean(self, latents: torch.Tensor) -> torch.Tensor:
        return self.scale * latents.mean((2, 3), keepdim=True).expand_as(latents)


def batch(chains: np.ndarray = CHAINS) -> ChainBatch:
    return ChainBatch(chains, Conditions({"states": torch.zeros(len(chains), 1)}, {"states": torch.zeros(1, 1)}))


def config(**changes: Any) -> DistillConfig:
    settings: dict[str, Any] = {"updates": 60, "batch_size": 6, "output_dir": "x", "rollouts": None, **changes}
    settings.setdefault("learner", LearnerConfig(learning_rate=0.05, ema_decay=0.0, weight_decay=0.0, microbatch=4))
    return DistillConfig(**settings)


def test_huber_is_quadratic_and_then_linear() -> None:
    assert float(huber(torch.tensor([0.1]), 0.2)) == pytest.approx(0.1**2 / 2 / 0.2)
    assert float(huber(torch.tensor([-0.5, 0.0]), 0.2)) == pytest.approx((0.5 - 0.1) / 2)


def test_the_learning_rate_rises_and_falls_by_a_cosine() -> None:
    rates = [learning_rate(update, 12, 2, 3.0) for update in range(12)]
    assert rates[:3] == pytest.approx([1.0, 2.0, 3.0])
    assert rates[7] == pytest.approx(1.5) and 0 < rates[-1] < rates[-2] < 0.3


def test_the_target_is_the_end_or_what_the_average_says_one_step_further_on() -> None:
    policy, rows, steps = Straight(), np.arange(6), np.array([0, 1, 2, 2, 1, 0])
    torch.testing.assert_close(_target(policy, batch(), rows, steps, TIMES, None), torch.from_numpy(CHAINS[:, -1]))
    average = MovingAverage(policy.weights.parameters, 0.5)
    with torch.no_grad():
        policy.scale.fill_(0.9)
    average.move()
    assert float(average.tensors["scale"]) == pytest.approx(0.7)
    found = _target(policy, batch(), rows, steps, TIMES, average)
    for row, step in enumerate(steps):
        following = torch.from_numpy(CHAINS[row : row + 1, min(step + 1, 3)])
        expected = following if step == 2 else 0.7 * following.mean((2, 3), keepdim=True).expand_as(following)
        torch.testing.assert_close(found[row : row + 1], expected, rtol=1e-4, atol=1e-4)
    assert policy.scale.item() == pytest.approx(0.9), "the average was asked for the time of the target alone"


@pytest.mark.parametrize("target", ["endpoint", "consistency"])
def test_a_network_that_is_right_has_no_loss_and_others_learn_to_be(target: str) -> None:
    """Chains that end in 0.8 times the channel means of every step, which all steps share."""
    chains = CHAINS.copy()
    chains[:, -1] = 0.8 * chains[:, :1].mean((3, 4), keepdims=True)[:, 0]
    chains[:, :3] += chains[:, :1].mean((3, 4), keepdims=True) - chains[:, :3].mean((3, 4), keepdims=True)
    right = Straight(0.8)
    torch.testing.assert_close(
        told_end(right, torch.from_numpy(chains[:, 1]), TIMES[[1] * 6], batch().conditions),
        torch.from_numpy(chains[:, -1]), rtol=1e-4, atol=1e-5,
    )  # fmt: skip
    settings = config(target=TargetConfig(name=target, ema_decay=0.5))
    [first, *_] = Distillation(right, TIMES, settings).steps(iter([batch(chains)] * 60))
    assert first["loss"] < 1e-9
    policy = Straight(0.2)
    log = list(Distillation(policy, TIMES, settings).steps(iter([batch(chains)] * 60)))
    assert len(log) == 60 and log[0]["loss"] > 0.005
    assert policy.scale.item() == pytest.approx(0.8, abs=0.05)


def test_microbatches_add_up_and_the_average_is_what_stays() -> None:
    def learned(microbatch: int, ema_decay: float) -> float:
        learner = LearnerConfig(learning_rate=0.05, ema_decay=ema_decay, microbatch=microbatch)
        policy = Straight()
        list(Distillation(policy, TIMES, config(updates=4, learner=learner)).steps(iter([batch()] * 4)))
        return policy.scale.item()

    assert learned(2, 0.0) == pytest.approx(learned(6, 0.0), abs=1e-5)
    assert abs(learned(6, 0.9) - 0.5) < 0.5 * abs(learned(6, 0.0) - 0.5)


@pytest.mark.parametrize("target", ["endpoint", "consistency"])
def test_memory_that_runs_out_halves_the_microbatch_and_changes_nothing_else(
    target: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Short(Straight):
        most = 6

        def output(self, latents: torch.Tensor, *arguments: Any) -> Any:
            if len(latents) > self.most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().output(latents, *arguments)

    found = []
    for most, size in ((1, 4), (6, 1)):
        learner = LearnerConfig(learning_rate=0.05, ema_decay=0.9, microbatch=size)
        policy, settings = Short(), config(updates=3, learner=learner, target=TargetConfig(name=target))
        policy.most = most
        log = list(Distillation(policy, TIMES, settings).steps(iter([batch()] * 3)))
        found.append((log, policy.scale.item()))
    assert found[0] == found[1]
    assert [line.message[-20:] for line in caplog.records] == ["learner.microbatch=2", "learner.microbatch=1"]
