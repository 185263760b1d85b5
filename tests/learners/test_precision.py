"""Half precision: evidence that is float32's, gradients of float32's direction, and a noise that is told."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stub_policy import SCHEDULER, StubPolicy, stub_rollout

from prdp.config import LearnerConfig, ModelConfig, SamplerConfig
from prdp.configuration.preconditions import precision_problems
from prdp.diffusion import build_policy, build_sampler
from prdp.diffusion.conditions import Conditions
from prdp.diffusion.precision import precision_problem, upcast
from prdp.diffusion.variance_preserving import build_transitions
from prdp.evidence.trajectory import TrajectoryRecorder
from prdp.learners import build_learner
from prdp.learners.learner import Learner
from prdp.learners.precision import check_noise, gradient_scale, spot_cells
from prdp.learners.precision_watch import accumulated
from prdp.support.errors import UserError
from prdp.types import PromptBatch, Rollout, Weights

SAMPLER = SamplerConfig(steps=3, guidance_scale=2.0, timestep_spacing="trailing")
CLIP = 1e-4
HALF = [("float32", "bfloat16"), ("float32", "float16"), ("bfloat16", None), ("float16", None)]
"""model.dtype and learner.autocast."""


class Run:
    """A learner and a sampler of one precision, from the same start as all others."""

    def __init__(self, folder: Path, dtype: str = "float32", autocast: str | None = None, **changes: Any) -> None:
        settings: dict[str, Any] = {"lora_rank": 4, "learning_rate": 1e-4, "max_grad_norm": 1e9, "autocast": autocast}
        self.config = LearnerConfig(**{**settings, **changes})
        self.model = ModelConfig(path=str(folder), dtype=dtype)
        self.policy = build_policy(self.model, self.config, seed=0, keep_reference=False)
        transitions = self.policy.process.transitions(SAMPLER)
        objective = {"name": "prdp", "beta": 1e-3, "clip_range": CLIP}
        self.learner: Learner = build_learner(self.policy, transitions, SAMPLER.guidance_scale, self.config, objective)

    def rollout(self, weights: Weights) -> Rollout:
        sampler = build_sampler(self.model, self.config, SAMPLER, seed=0, recorder=TrajectoryRecorder())
        if weights.version:
            sampler.load_weights(weights)
        prompts = PromptBatch(weights.version, 0, ("a small red circle", "two stars"), ({}, {}))
        return sampler.sample(prompts, 2, seed=3).scored(np.random.default_rng(0).normal(size=4), {})

    def gradient(self) -> torch.Tensor:
        return torch.cat([value.grad.flatten() for value in self.policy.weights.parameters.values()])


def cosine(left: torch.Tensor, right: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(left.double(), right.double(), dim=0))


def tiny_coefficients(learner: Any, rollout: Rollout) -> None:
    """The gradient of evidence with coefficients of 512 images and 50 steps."""
    signs = np.random.default_rng(1).choice([-1.0, 1.0], rollout.stored["log_ratio"].shape)
    tables = {"log_ratio": signs / (512 * 50)}
    accumulated(learner.engine, learner.engine.batch(rollout, 0), np.arange(signs.size), tables, None)


@pytest.mark.parametrize(("dtype", "autocast"), [half for half in HALF if "float16" in half])
def test_float16_gradients_do_not_underflow(narrow_pipeline: Path, dtype: str, autocast: str | None) -> None:
    exact, half = Run(narrow_pipeline, mode="full"), Run(narrow_pipeline, dtype, autocast, mode="full")
    rollout = exact.rollout(exact.learner.weights())
    for run in (exact, half):
        tiny_coefficients(run.learner, rollout)
    assert cosine(exact.gradient(), half.gradient()) > 0.999
    zero = [float((run.gradient() == 0).double().mean()) for run in (exact, half)]
    assert zero[1] < zero[0] + 0.02


@pytest.mark.slow
def test_jax_float16_gradients_do_not_underflow(narrow_pipeline: Path) -> None:
    exact, half = Run(narrow_pipeline), Run(narrow_pipeline, autocast="float16", framework="jax")
    rollout = exact.rollout(exact.learner.weights())
    for run in (exact, half):
        tiny_coefficients(run.learner, rollout)
    learner: Any = half.learner
    flat = [
        torch.from_numpy(np.array(learner.engine._network.gradient[name])).flatten()
        for name in exact.policy.weights.parameters
    ]
    assert cosine(exact.gradient(), torch.cat(flat)) > 0.999


@pytest.mark.slow
def test_an_overflow_lowers_the_scale_and_an_infinite_gradient_is_refused(narrow_pipeline: Path) -> None:
    run = Run(narrow_pipeline, autocast="float16")
    rollout = run.rollout(run.learner.weights())
    calls = 0

    def overflowing(gradient: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return gradient * (torch.inf if calls <= 2 else 1.0)

    some = next(iter(run.policy.weights.parameters.values()))
    hook = some.register_hook(overflowing)
    first = run.learner.update(rollout)["gradient_scale"]
    assert calls == 3
    calls = 2
    run.learner.load_state(*Run(narrow_pipeline).learner.state())
    assert run.learner.update(rollout)["gradient_scale"] == first * 2.0**12
    hook.remove()
    some.register_hook(lambda gradient: gradient * torch.inf)
    before = run.learner.weights().checksum
    with pytest.raises(ValueError, match="is not finite, first in tensor"):
        run.learner.update(dataclasses.replace(rollout, weights_version=-1))
    assert run.learner.weights().checksum == before


def test_the_scale_is_a_power_of_two_of_the_largest_coefficient() -> None:
    tables = {"log_ratio": np.array([[1.0, -3.0]]), "kl_ref": np.array([[0.5, 0.0]])}
    assert gradient_scale(tables, 96) == 1.0  # 3 / 96 is 2^-5
    assert gradient_scale({name: table * 2.0**-30 for name, table in tables.items()}, 96) == 2.0**30
    assert gradient_scale({"log_ratio": np.zeros((2, 3))}, 96) == 1.0


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "dtype", "autocast"), [*(("lora", *half) for half in HALF), ("full", *HALF[2])])
def test_half_precision_learns_as_float32_does(
    narrow_pipeline: Path, mode: str, dtype: str, autocast: str | None
) -> None:
    """Two updates of a rollout of moved weights, the second with an active clip."""
    rate = 1e-4 if mode == "lora" else 1e-6
    exact, half = (Run(narrow_pipeline, *kind, mode=mode, learning_rate=rate) for kind in ((), (dtype, autocast)))
    exact.learner.update(exact.rollout(exact.learner.weights()))
    states = [exact.learner.state()]
    expected, rollout = (run.rollout(exact.learner.weights()) for run in (exact, half))
    assert np.abs(rollout.stored["log_ratio"]).max() > 0
    for name in ("log_ratio", "base_output", "latents"):
        np.testing.assert_array_equal(rollout.stored[name], expected.stored[name])
    for update in range(2):
        half.learner.load_state(*states[-1])
        right, ours = (run.learner.update(rollout) for run in (exact, half))
        states.append(exact.learner.state())
        assert cosine(exact.gradient(), half.gradient()) > (0.999 if "float16" in (dtype, autocast) else 0.95)
        assert ours["clipfrac"] == right["clipfrac"]
        assert (0 < right["clipfrac"] < 1) == (update == 1), "the clip must be active for this test to say anything"
        assert ours["loss"] == pytest.approx(right["loss"], rel=1e-5)
        assert "evidence_noise" not in right
        if update == 0:
            assert 0 < ours["evidence_noise"] < CLIP / 10
            assert ours["ratio_error"] < CLIP / 10


class NoisyPolicy(StubPolicy):
    """Says that it computes in half precision, and its roundings are of the size of `noise`."""

    precision = "bfloat16"
    noise = 1e-3

    def output(self, latents: torch.Tensor, times: Any, conditions: Conditions, *rest: Any) -> torch.Tensor:
        exact = super().output(latents, times, conditions, *rest)
        return exact + self.noise * torch.sin(1e9 * (latents + conditions.fields["states"][:, :, None, None]))


class RoundingPolicy(StubPolicy):
    """Rounds its outputs to bfloat16 where it is not asked for float32."""

    precision = "bfloat16"
    rounds = True

    @contextmanager
    def float32(self) -> Iterator[None]:
        self.rounds = False
        yield
        self.rounds = True

    def output(self, *arguments: Any) -> torch.Tensor:
        exact = super().output(*arguments)
        return exact + (exact.bfloat16().double() - exact).detach() if self.rounds else exact


@pytest.mark.parametrize("name", ["prdp", "ddpo", "reinforce", "grpo", "rebel", "diffusion_dpo"])
@pytest.mark.parametrize("on_policy", [True, False])
def test_every_objective_takes_evidence_in_float32(name: str, on_policy: bool) -> None:
    transitions = build_transitions(SCHEDULER, steps=4)
    rollout = stub_rollout(StubPolicy(), transitions)
    gradients, metrics = [], []
    for policy in (StubPolicy(), RoundingPolicy()):
        learner = build_learner(
            policy, transitions, 1.0, LearnerConfig(mode="full", max_grad_norm=1e9), {"name": name}, seed=3
        )
        with torch.no_grad():  # after the learner, which may keep the policy as its reference
            for value in policy.weights.parameters.values():
                value.add_(0.0 if on_policy and name != "diffusion_dpo" else 1e-5)
        metrics.append(learner.update(dataclasses.replace(rollout, weights_version=0 if on_policy else 1)))
        gradients.append(torch.cat([value.grad.flatten() for value in policy.weights.parameters.values()]))
    assert cosine(*gradients) > 0.999
    exact, half = metrics
    for key in exact.keys() & {"loss", "clipfrac", "logratio", "logratio_ref", "approx_kl"}:
        assert half[key] == pytest.approx(exact[key], rel=1e-3, abs=1e-12), key
    if name == "grpo":
        assert half["kl_ref"] == pytest.approx(exact["kl_ref"], rel=0.1)


@pytest.mark.parametrize(("share", "says"), [(3.0, "warns"), (30.0, "nothing"), (0.3, "refuses")])
def test_evidence_noise_is_told_and_refused_where_a_clip_acts(
    share: float, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    policy, transitions = NoisyPolicy(), build_transitions(SCHEDULER, steps=5)
    rollout = stub_rollout(policy, transitions)
    config = LearnerConfig(mode="full", learning_rate=1e-6, microbatch=1000)

    def build(clip_range: float) -> Learner:
        return build_learner(policy, transitions, 1.0, config, {"name": "prdp", "beta": 0.5, "clip_range": clip_range})

    noise = build(1.0).update(rollout)["evidence_noise"]
    assert 1e-4 < noise < 1.0
    rollout = dataclasses.replace(stub_rollout(policy, transitions))
    learner = build(noise * share)
    with caplog.at_level(logging.WARNING):
        learner.update(rollout)
        assert "evidence_noise" not in caplog.text, "no clip acts at the first update"
        before = learner.weights().checksum
        if says == "refuses":
            with pytest.raises(UserError, match=r"evidence_noise.*clip_range=.*learner\.autocast, model\.dtype"):
                learner.update(rollout)
            assert learner.weights().checksum == before
        else:
            learner.update(rollout)
            learner.update(rollout)
    assert caplog.text.count("evidence_noise") == (says == "warns")


def test_the_noise_of_stale_rollouts_is_measured_at_the_first_update_of_each(caplog: pytest.LogCaptureFixture) -> None:
    """As in a run that resumes with samplers ahead of it: no rollout of it is on-policy."""
    policy, transitions = NoisyPolicy(), build_transitions(SCHEDULER, steps=5)
    config = LearnerConfig(mode="full", learning_rate=1e-6, microbatch=1000)

    def stale(epoch: int) -> Rollout:
        rollout = stub_rollout(policy, transitions)
        return dataclasses.replace(
            rollout, prompts=dataclasses.replace(rollout.prompts, epoch=epoch), weights_version=99
        )

    def build(clip_range: float) -> Learner:
        return build_learner(policy, transitions, 1.0, config, {"name": "prdp", "beta": 0.5, "clip_range": clip_range})

    learner = build(1.0)
    first, again, other = (learner.update(stale(epoch)) for epoch in (1, 1, 2))
    assert "evidence_noise" not in again and "ratio_error" not in first | again | other
    on_policy = build(1.0).update(stub_rollout(policy, transitions))["evidence_noise"]
    assert first["evidence_noise"] == pytest.approx(on_policy, rel=0.5) and other["evidence_noise"] > 0
    learner = build(3.0 * first["evidence_noise"])
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        learner.update(stale(1))
        learner.update(stale(2))
    assert caplog.text.count("evidence_noise") == 1
    before = learner.weights().checksum
    policy.noise *= 10
    with pytest.raises(UserError, match=r"evidence_noise.*clip_range="):
        learner.update(stale(3))
    assert learner.weights().checksum == before


def test_noise_is_compared_with_the_clip_and_its_tenth() -> None:
    assert not check_noise(1e-7, 1e-6, precision="float16", update=1)
    assert check_noise(1.1e-7, 1e-6, precision="float16", update=1)
    for noise in (1.1e-6, float("nan")):
        with pytest.raises(UserError, match=r"update 1.*float16"):
            check_noise(noise, 1e-6, precision="float16", update=1)


@pytest.mark.parametrize(("images", "columns", "microbatch"), [(128, 7, 64), (4, 3, 1), (3, 50, 100), (512, 50, 4)])
def test_spot_cells_are_different_cells_of_all_steps(images: int, columns: int, microbatch: int) -> None:
    cells = spot_cells(images, columns, microbatch)
    assert len(set(cells.tolist())) == len(cells) == min(images * columns, max(microbatch, 16))
    assert cells.min() >= 0
    assert cells.max() < images * columns
    assert len(set(cells % columns)) == min(columns, len(cells))


def test_upcast_changes_no_value_and_comes_back() -> None:
    layer = torch.nn.Linear(3, 2).bfloat16()
    before = layer.weight.data
    with upcast(layer):
        assert layer.weight.dtype == torch.float32
        assert torch.equal(layer.weight, before.float())
        assert layer(torch.ones(1, 3)).dtype == torch.float32
    assert layer.weight.data is before or layer.weight.data_ptr() == before.data_ptr()


def test_two_half_precisions_do_not_mix(narrow_pipeline: Path) -> None:
    assert precision_problem("model.dtype", "float32", "autocast", "float16") is None
    with pytest.raises(ValueError, match=r"learner\.autocast=float16: must be null or bfloat16 for model\.dtype="):
        Run(narrow_pipeline, "bfloat16", "float16")


@pytest.mark.parametrize(("dtype", "autocast"), HALF)
def test_a_cpu_computes_in_every_precision(dtype: str, autocast: str | None) -> None:
    assert precision_problems(ModelConfig(dtype=dtype, device="cpu"), autocast) == []
