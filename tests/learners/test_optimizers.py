"""Optimizers by name: exact resume, the same on all ranks, what each does to a tensor, and what is refused."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from typing import Any

import numpy as np
import pytest
import torch
from composing import compose
from stub_policy import stub_rollout
from test_sharded_engine import TRANSITIONS, SinglePolicy, build

from prdp.config import LearnerConfig
from prdp.configuration.bounds import check_bounds
from prdp.configuration.preconditions import package_problems, stepping_problems
from prdp.learners import optimizers
from prdp.learners.optimizers import build_optimizer
from prdp.support.errors import ConfigError

PACKAGES = {"adamw_8bit": "bitsandbytes", "prodigy": "prodigyopt"}
RATES = {"adamw": 1e-3, "adamw_fused": 1e-3, "adamw_8bit": 1e-3, "prodigy": 1.0, "muon": 1e-3}


def needed(name: str) -> None:
    pytest.importorskip(PACKAGES.get(name, "torch"))


def tensors(seed: int = 0) -> dict[str, torch.nn.Parameter]:
    rng = np.random.default_rng(seed)
    shapes = {"down": (8, 640), "up": (640, 8), "small": (4, 6)}
    made = {k: torch.nn.Parameter(torch.from_numpy(rng.normal(size=v)).float()) for k, v in shapes.items()}
    torch.nn.init.zeros_(made["up"])  # as LoRAs start
    return made


def stepped(optimizer: Any, values: dict[str, torch.nn.Parameter], first: int, count: int, rate: float) -> None:
    for update in range(first, first + count):
        rng = np.random.default_rng(100 + update)
        for value in values.values():
            value.grad = torch.from_numpy(rng.normal(size=value.shape)).float()
        optimizer.step(rate)


@pytest.mark.parametrize("name", RATES)
def test_a_state_that_was_saved_goes_on_bit_for_bit(name: str) -> None:
    needed(name)
    config, straight, first = LearnerConfig(optimizer=name), tensors(), tensors()
    stepped(build_optimizer(config, straight), straight, 0, 5, RATES[name])
    saved = build_optimizer(config, first)
    stepped(saved, first, 0, 3, RATES[name])
    state = {key: value.numpy().copy() for key, value in saved.state().items()}
    second = {key: torch.nn.Parameter(value.detach().clone()) for key, value in first.items()}
    resumed = build_optimizer(config, second)
    resumed.load(state)
    stepped(resumed, second, 3, 2, RATES[name])
    assert all(torch.equal(second[key], straight[key]) for key in straight)
    missing = {key: value for key, value in state.items() if not key.endswith("/up")}
    with pytest.raises(ValueError, match=r"no tensor 'optimizer/\w+/up'"):
        build_optimizer(config, tensors()).load(missing)
    big = next(key for key, value in state.items() if key.endswith("/down") and value.ndim)
    with pytest.raises(ValueError, match=r"has shape .*, expected"):
        build_optimizer(config, tensors()).load({**state, big: state[big][:-1]})


@pytest.mark.parametrize("name", ["adamw_fused", "adamw_8bit", "prodigy"])
def test_ranks_take_the_step_of_one_process_and_a_learner_goes_on(name: str) -> None:
    needed(name)
    settings = {"optimizer": name, "learning_rate": RATES[name]}
    rollout = stub_rollout(SinglePolicy(), TRANSITIONS, prompts=5)
    one, two = (build({"name": "prdp"}, count, **settings) for count in (1, 2))
    for learner in (one, two, one, two):
        learner.update(rollout)
    (left, _), (right, _) = one.state(), two.state()
    assert left.keys() == right.keys() and any(key.startswith("optimizer/") for key in left)
    assert all(np.array_equal(left[key], right[key]) for key in left)
    again = build({"name": "prdp"}, 1, **settings)
    again.load_state(*one.state())
    assert one.update(rollout)["loss"] == again.update(rollout)["loss"]
    assert one.weights().checksum == again.weights().checksum


@pytest.mark.parametrize(("name", "within"), [("adamw_fused", 1e-6), ("adamw_8bit", 0.1)])
def test_a_kind_of_adamw_goes_where_adamw_goes(name: str, within: float) -> None:
    needed(name)
    moved = {}
    for one in ("adamw", name):
        values = tensors()
        start = values["down"].detach().clone()
        stepped(build_optimizer(LearnerConfig(optimizer=one), values), values, 0, 4, 1e-2)
        moved[one] = values["down"].detach() - start
    assert (moved[name] - moved["adamw"]).norm() < within * moved["adamw"].norm()


def test_moments_of_8_bits_take_a_quarter() -> None:
    needed("adamw_8bit")
    values = tensors()
    optimizer = build_optimizer(LearnerConfig(optimizer="adamw_8bit"), values)
    stepped(optimizer, values, 0, 1, 1e-3)
    state = optimizer.state()
    assert sum(value.numel() * value.element_size() for key, value in state.items() if key.endswith("/down")) < (
        2.1 * values["down"].numel()
    )
    assert state["state1/down"].dtype == torch.uint8 and state["state1/small"].dtype == torch.float32


def test_prodigy_finds_its_step_size() -> None:
    """Of a quadratic whose minimum is 300 away: from steps of 1e-6, far below, to its floor."""
    needed("prodigy")
    values = {"x": torch.nn.Parameter(torch.zeros(4))}
    optimizer = build_optimizer(LearnerConfig(optimizer="prodigy", weight_decay=0.0), values)
    for _ in range(400):
        values["x"].grad = values["x"].detach() - 300.0
        optimizer.step(1.0)
    assert (values["x"] - 300.0).abs().max() < 3.0
    assert optimizer.state()["group/d"].item() > 1.0


def test_muon_steps_are_orthogonal_and_as_large_as_those_of_adamw() -> None:
    values = tensors()
    start = values["down"].detach().clone()
    optimizer = build_optimizer(LearnerConfig(optimizer="muon", weight_decay=0.0), values)
    stepped(optimizer, values, 0, 1, 1e-2)
    step = (values["down"].detach() - start) / 1e-2
    lengths = torch.linalg.svdvals(step) / (0.2 * math.sqrt(640))
    assert lengths.min() > 0.5 and lengths.max() < 1.5


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["learner.optimizer=adam"], "learner.optimizer=adam: must be one of adamw, adamw_fused, adamw_8bit, prodigy"),
        (["learner.optimizer=prodigy"], "learner.learning_rate=0.0003: must be at least 0.01 .*prodigy.*; set 1"),
        (["learner.optimizer=muon", "learner.adam_beta2=.99"], "learner.adam_beta2=0.99: has no effect .* at 0.999"),
        (["learner.optimizer=muon", "learner=full"], "learner.optimizer=muon: needs learner.mode=lora"),
        (["learner.optimizer=adamw_8bit", "learner.framework=jax"], "must be adamw for learner.framework=jax"),
    ],
)
def test_what_an_optimizer_would_not_read_is_refused(words: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        check_bounds(compose(*words, "output_dir=x"))


def test_a_package_that_is_missing_and_a_device_that_cannot_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose("learner.optimizer=adamw_8bit", "output_dir=x")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    told = "needs bitsandbytes, which is not installed: pip install 'prdp[bitsandbytes]'"
    assert f"learner.optimizer=adamw_8bit: {told}" in package_problems(config)
    monkeypatch.undo()
    fused = dataclasses.replace(config.learner, optimizer="adamw_fused")
    assert stepping_problems(fused, dataclasses.replace(config.model, device="cpu")) == []

    def cannot(*_: Any, **__: Any) -> None:
        raise RuntimeError("no kernel\nfor it")

    monkeypatch.setattr(optimizers, "adamw", cannot)
    [told] = stepping_problems(fused, dataclasses.replace(config.model, device="cpu"))
    assert told == "learner.optimizer=adamw_fused: the device cpu does not compute it: no kernel; use adamw"
