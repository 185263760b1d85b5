"""The two-pass update against full autodiff; microbatches, resume and the guards."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from averages import DECAY, check_average
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from stub_policy import SCHEDULER, StubPolicy, stub_rollout

from prdp.config import LearnerConfig
from prdp.diffusion.transitions import log_ratio, standardise
from prdp.diffusion.variance_preserving import build_transitions
from prdp.learners import build_learner
from prdp.learners.guards import RatioError, unlearned
from prdp.learners.learner import Learner
from prdp.learners.torch_engine import TorchEngine
from prdp.objectives.prdp import prdp
from prdp.types import Rollout

STEPS = 5
TRANSITIONS = build_transitions(SCHEDULER, steps=STEPS)


ROOT = "inverse_root_sensitivity"


def build(policy: StubPolicy, beta: float = 0.5, clip_range: float | None = 1e-2, **learner: Any) -> Learner:
    config = LearnerConfig(mode="full", **{"learning_rate": 1e-3, "max_grad_norm": 1e9, **learner})
    return build_learner(policy, TRANSITIONS, 1.0, config, {"name": "prdp", "beta": beta, "clip_range": clip_range})


def full_autodiff(policy: StubPolicy, rollout: Rollout, beta: float, clip_range: float | None) -> list[torch.Tensor]:
    """Gradients of the loss with the graph of every step of every image kept."""
    count = len(rollout)
    states = policy.encode(rollout.image_prompts)
    columns = []
    for step in range(STEPS):
        x, following = (torch.from_numpy(rollout.stored["latents"][:, step + after]) for after in (0, 1))
        times = torch.full((count,), float(TRANSITIONS.times[step]), dtype=torch.float64)
        output = policy.output(x, times, states, 1.0)
        reference = torch.from_numpy(rollout.stored["base_output"][:, step])
        columns.append(
            log_ratio(*standardise(TRANSITIONS, torch.full((count,), step), x, following, output, reference))
        )
    loss, _ = prdp(
        torch.stack(columns, 1),
        torch.from_numpy(rollout.stored["log_ratio"]),
        None,
        torch.from_numpy(rollout.rewards),
        torch.from_numpy(rollout.group_ids),
        None,
        None,
        beta=beta,
        clip_range=clip_range,
    )
    return list(torch.autograd.grad(loss, list(policy.weights.parameters.values())))


def moved(policy: StubPolicy) -> StubPolicy:
    """Another policy than the one that sampled, so that clip and max are active."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for value in policy.weights.parameters.values():
            value.add_(0.05 * torch.randn(value.shape, generator=generator, dtype=value.dtype))
    return policy


@pytest.mark.parametrize("clip_range", [1e-2, None])
@pytest.mark.parametrize("microbatch", [1, 7, 1000])
def test_two_pass_gradient_equals_full_autodiff(clip_range: float | None, microbatch: int) -> None:
    policy = StubPolicy()
    # Version 1 is not the learner's, so the evidence is recomputed as at a later inner update.
    rollout = dataclasses.replace(stub_rollout(policy, TRANSITIONS), weights_version=1)
    moved(policy)
    expected = full_autodiff(policy, rollout, 0.5, clip_range)
    learner = build(policy, clip_range=clip_range, microbatch=microbatch)
    metrics = learner.update(rollout)
    for value, gradient in zip(policy.weights.parameters.values(), expected, strict=True):
        assert value.grad is not None
        error = (value.grad - gradient).abs().max() / gradient.abs().max()
        assert error < 1e-10
    if clip_range is not None:
        assert 0.1 < metrics["clipfrac"] < 1.0, "the clip must be active for this test to say anything"


def test_first_update_uses_the_stored_evidence_and_equals_autodiff() -> None:
    policy = StubPolicy()
    rollout = stub_rollout(policy, TRANSITIONS)
    expected = full_autodiff(policy, rollout, 0.5, 1e-2)
    metrics = build(policy).update(rollout)
    for value, gradient in zip(policy.weights.parameters.values(), expected, strict=True):
        torch.testing.assert_close(value.grad, gradient, rtol=1e-10, atol=1e-12)
    assert metrics["logratio"] == 0.0
    assert metrics["clipfrac"] == 0.0


def test_the_ratio_guard_stops_before_the_step_and_says_where() -> None:
    policy = StubPolicy()
    rollout = stub_rollout(policy, TRANSITIONS)
    rollout.stored["log_ratio"][5, 2] += 0.5
    before = policy.weights.export(0)
    learner = build(policy)
    with pytest.raises(RatioError, match=r"differs by 0\.5 .*image 5, step 2"):
        learner.update(rollout)
    assert policy.weights.export(0).checksum == before.checksum
    assert learner.version == 0


def test_evidence_that_is_not_a_number_is_named_by_its_cell() -> None:
    policy = StubPolicy()
    rollout = stub_rollout(policy, TRANSITIONS)
    rollout.stored["latents"][3, 1] = np.nan
    with pytest.raises(ValueError, match=r"'log_ratio' of update 0 is nan at image 3, step 0 \(time .*\), epoch 0"):
        build(policy).update(rollout)


def test_the_loss_goes_down_on_a_fixed_batch() -> None:
    policy = StubPolicy()
    rollout = stub_rollout(policy, TRANSITIONS)
    learner = build(policy, beta=5.0, clip_range=None, learning_rate=3e-3)
    losses = [learner.update(rollout)["loss"] for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0]


def test_state_round_trip_continues_the_same_curve() -> None:
    rollout = stub_rollout(StubPolicy(), TRANSITIONS)
    straight = build(StubPolicy(), ema_decay=0.9, warmup_updates=3)
    for _ in range(3):
        straight.update(rollout)
    first = build(StubPolicy(), ema_decay=0.9, warmup_updates=3)
    for _ in range(2):
        first.update(rollout)
    second = build(StubPolicy(seed=5), ema_decay=0.9, warmup_updates=3)
    second.load_state(*first.state())
    second.update(rollout)
    assert second.weights().checksum == straight.weights().checksum
    assert second.evaluation_weights().checksum == straight.evaluation_weights().checksum
    assert second.evaluation_weights().checksum != second.weights().checksum


def test_a_checkpoint_without_optimizer_state_is_refused() -> None:
    learner = build(StubPolicy())
    learner.update(stub_rollout(StubPolicy(), TRANSITIONS))
    tensors, scalars = learner.state()
    missing = {name: value for name, value in tensors.items() if not name.startswith("optimizer/exp_avg/0")}
    with pytest.raises(ValueError, match="no tensor 'optimizer/exp_avg/0"):
        build(StubPolicy()).load_state(missing, scalars)


def test_warmup_and_gradient_clipping() -> None:
    policy = StubPolicy()
    learner = build(policy, warmup_updates=4, max_grad_norm=0.5)
    rollout = stub_rollout(policy, TRANSITIONS)
    rates = [learner.update(rollout)["learning_rate"] for _ in range(6)]
    np.testing.assert_allclose(rates, [2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3, 1e-3])
    norm = torch.stack([value.grad.norm() for value in policy.weights.parameters.values()]).norm()
    assert norm.item() == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (1e200, r"beyond float32: entries up to 1e\+200, in tensor '0"),
        (float("nan"), "is not finite, first in tensor '0"),
    ],
)
def test_a_gradient_without_a_finite_norm_is_named_and_not_stepped(entry: float, message: str) -> None:
    policy = StubPolicy()
    learner, rollout = build(policy), stub_rollout(policy, TRANSITIONS)
    for value in policy.weights.parameters.values():
        value.register_hook(lambda gradient: torch.full_like(gradient, entry))
    before = learner.weights().checksum
    with pytest.raises(ValueError, match=message):
        learner.update(rollout)
    assert learner.weights().checksum == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards": None}, "no rewards"),
        ({"rewards": np.full(12, np.nan)}, "12 of 12 rewards are not finite"),
        ({"stored": {}}, "no trajectories"),
        ({"conditions": {}}, "no conditions of its prompts"),
        ({"images_per_prompt": 1}, "a group of one image makes no pair"),
    ],
)
def test_rollouts_that_teach_nothing_are_refused(change: dict[str, Any], message: str) -> None:
    policy = StubPolicy()
    with pytest.raises(ValueError, match=message):
        build(policy).update(dataclasses.replace(stub_rollout(policy, TRANSITIONS), **change))


def test_constant_rewards_and_dead_parameters_are_counted_and_named(caplog: pytest.LogCaptureFixture) -> None:
    policy = StubPolicy()
    rollout = dataclasses.replace(stub_rollout(policy, TRANSITIONS), rewards=np.ones(12))
    learner = build(policy)
    assert learner.update(rollout)["rewards_constant"] == 1.0
    assert "all 12 rewards of epoch 0 are 1" in caplog.text
    policy.network.register_parameter("unused", torch.nn.Parameter(torch.ones(1, dtype=torch.float64)))
    policy.weights.parameters = dict(policy.network.named_parameters())
    metrics = build(policy).update(stub_rollout(policy, TRANSITIONS))
    assert metrics["parameters_without_gradient"] == 1.0
    assert "1 of 5 tensors got no gradient, first: unused" in caplog.text


def test_step_weights_divide_by_the_sensitivity() -> None:
    policy = StubPolicy()
    config = {"name": "prdp", "beta": 0.5, "clip_range": None, "step_weighting": "inverse_sensitivity"}
    learner = build_learner(policy, TRANSITIONS, 1.0, LearnerConfig(mode="full"), config)
    learner.update(stub_rollout(policy, TRANSITIONS))
    weights = 1 / TRANSITIONS.sensitivity
    found = learner.objective.evidence.weights(stub_rollout(policy, TRANSITIONS), TRANSITIONS)
    assert found is not None
    np.testing.assert_allclose(found, np.tile(weights / weights.mean(), (12, 1)))
    root = build_learner(policy, TRANSITIONS, 1.0, LearnerConfig(mode="full"), {**config, "step_weighting": ROOT})
    found = root.objective.evidence.weights(stub_rollout(policy, TRANSITIONS), TRANSITIONS)
    np.testing.assert_allclose(found, np.tile(weights**0.5 / (weights**0.5).mean(), (12, 1)))
    with pytest.raises(ValueError, match=r"objective\.step_weighting=kappa: must be one of 'uniform', 'inverse_s"):
        build_learner(policy, TRANSITIONS, 1.0, LearnerConfig(), {**config, "step_weighting": "kappa"})


def test_the_moving_average_is_its_formula() -> None:
    def set_gradient(learner: Any, update: int) -> None:
        rng = np.random.default_rng(update)
        for value in learner.engine._parameters.values():
            value.grad = torch.from_numpy(rng.normal(size=value.shape))

    check_average(lambda: build(StubPolicy(), ema_decay=DECAY), set_gradient, rtol=1e-12)


def test_a_step_is_that_of_adamw_bit_for_bit_also_of_a_tensor_that_learns_later() -> None:
    engine = build(StubPolicy(), adam_beta1=0.8, adam_beta2=0.99, adam_epsilon=1e-6, weight_decay=0.1).engine
    assert isinstance(engine, TorchEngine)
    wanted = {name: value.detach().clone().requires_grad_() for name, value in engine._parameters.items()}
    adamw = torch.optim.AdamW(wanted.values(), betas=(0.8, 0.99), eps=1e-6, weight_decay=0.1)
    rng = np.random.default_rng(0)
    for update, rate in enumerate((0.1, 0.05, 0.2)):
        for name, value in engine._parameters.items():
            late = update == 0 and name.endswith("2.bias")
            value.grad = None if late else torch.from_numpy(rng.normal(size=value.shape))
            wanted[name].grad = value.grad
        adamw.param_groups[0]["lr"] = rate
        adamw.step()
        engine.apply(rate, 0.0, update)
        for name, value in engine._parameters.items():
            assert torch.equal(value, wanted[name]), name


def test_without_a_moving_average_the_weights_are_evaluated() -> None:
    learner = build(policy := StubPolicy())
    learner.update(stub_rollout(policy, TRANSITIONS))
    assert learner.evaluation_weights().checksum == learner.weights().checksum


def test_gradients_of_rounding_alone_count_as_none() -> None:
    assert unlearned({"a": 3.0, "b": 1e-9, "c": 0.0, "d": None, "e": 1e-6}, first=False) == ["b", "c", "d"]
    assert unlearned({"a": 3.0, "b": 1e-9, "c": 0.0, "d": None}, first=True) == ["d"]
    assert unlearned({"a": 0.0, "b": 0.0}, first=False) == ["a", "b"]
    assert unlearned({"a": math.inf, "b": 1.0}, first=False) == []


def test_queries_and_keys_of_a_single_position_count_as_without_gradient() -> None:
    """The softmax over one position is 1: JAX finds a gradient of exactly 0 there, torch one of rounding."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        block_out_channels=(32,) * 4,
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False))
    with torch.no_grad():
        for name, value in unet.named_parameters():
            if ".lora_B." in name:
                value.mul_(0.01)  # which starts at zero, and stays the smaller factor
    latents, states = torch.randn(2, 4, 8, 8), torch.randn(2, 8, 16)
    unet(latents, torch.tensor([1, 900]), states, return_dict=False)[0].mul(torch.randn(2, 4, 8, 8)).sum().backward()
    largest = {name: float(value.grad.abs().max()) for name, value in unet.named_parameters() if value.grad is not None}
    assert len(largest) == 160
    middle = "mid_block.attentions.0.transformer_blocks.0.attn1"
    expected = {f"{middle}.{part}.lora_{factor}.default.weight" for part in ("to_q", "to_k") for factor in "AB"}
    assert set(unlearned(largest, first=False)) == expected
