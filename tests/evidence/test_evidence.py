"""What kinds of evidence keep and compute: relative to the reference or not, in half the memory, of an old policy."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from stub_policy import SCHEDULER, StubPolicy, stub_rollout

from prdp.config import LearnerConfig, SamplerConfig
from prdp.diffusion.sampler import Sampler
from prdp.diffusion.variance_preserving import build_transitions
from prdp.evidence import Denoising, OldPolicy, Trajectory
from prdp.evidence.denoising import FinalLatents
from prdp.evidence.trajectory import TrajectoryRecorder
from prdp.learners import build_learner
from prdp.learners.guards import check_columns
from prdp.learners.learner import Learner
from prdp.learners.update_plan import further_passes
from prdp.learners.used_cells import used
from prdp.objectives import OBJECTIVES, Method, build_objective
from prdp.objectives._groups import by_group, differences
from prdp.types import PromptBatch, Rollout

STEPS = 4
TRANSITIONS = build_transitions(SCHEDULER, steps=STEPS)
SAMPLER = SamplerConfig(steps=STEPS, guidance_scale=1.0, microbatch=5)
PROMPTS = PromptBatch(0, 0, ("x", "xx", "xxx"), ({}, {}, {}))


def build(policy: StubPolicy, objective: dict[str, Any], **learner: Any) -> Learner:
    config = LearnerConfig(mode="full", **{"learning_rate": 1e-3, "max_grad_norm": float("inf"), **learner})
    return build_learner(policy, TRANSITIONS, 1.0, config, objective, seed=5)


def moved(policy: StubPolicy, by: float = 0.05) -> StubPolicy:
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for value in policy.weights.parameters.values():
            value.add_(by * torch.randn(value.shape, generator=generator, dtype=value.dtype))
    return policy


def sampled(recorder: TrajectoryRecorder) -> Rollout:
    """By a policy that has moved away from its reference."""
    policy = StubPolicy()
    policy.weights.keep_reference()
    sampler = Sampler(moved(policy), SAMPLER, TRANSITIONS, recorder)
    sampler._version = 1
    rollout = sampler.sample(PROMPTS, 4, 3)
    return dataclasses.replace(rollout.scored(np.random.default_rng(0).normal(size=12), {}), weights_version=7)


def test_what_is_relative_to_the_policy_that_sampled() -> None:
    """It is the same beside the reference, for which the policy's outputs are kept as well, and the parts add up."""
    beside = {"needs_reference": True, "keeps_policy": True}
    for name, recorder in (("grpo_guard", {"needs_reference": False}), ("flow_dppo", {"needs_reference": False})):
        arrays = build_objective({"name": name}).arrays
        assert Trajectory().recorder(arrays) == TrajectoryRecorder(**recorder)
        assert Trajectory().recorder((*arrays, "kl_ref")) == TrajectoryRecorder(**beside)
    bare, relative = sampled(TrajectoryRecorder(needs_reference=False)), sampled(TrajectoryRecorder(**beside))
    np.testing.assert_array_equal(relative.stored["policy_output"], bare.stored["base_output"])
    names = ("log_importance", "guarded_importance", "kl_old")
    found = []
    for rollout in (bare, relative):
        engine = build(moved(StubPolicy(), 0.06), {"name": "flow_dppo"}).engine
        cells = np.arange(len(rollout) * STEPS)
        found.append(engine.evidence(engine.batch(rollout, 0), cells, channels=names))
    for channels in found:
        sigma = TRANSITIONS.sigma[bare.stored["steps"]]
        whole = sigma * (channels["log_importance"] + channels["kl_old"])
        np.testing.assert_allclose(channels["guarded_importance"], whole, rtol=1e-3, atol=1e-8)
        assert channels["kl_old"].min() > 0
    for name in ("guarded_importance", "kl_old"):
        np.testing.assert_array_equal(found[0][name], found[1][name])
    kept = Trajectory().stored_latents(SAMPLER, TRANSITIONS.noisy, ("kl_old", "kl_ref"))
    assert kept["outputs of the policy"] == kept["outputs of the reference"] == STEPS


@pytest.mark.parametrize("name", ["ddpo", "reinforce", "grpo", "tempflow_grpo", "rebel"])
def test_importance_needs_no_reference(name: str) -> None:
    """It is the same whether log-ratios are relative to the reference or to the policy that sampled."""
    knobs = {"grpo": {"beta": 0.0}, "tempflow_grpo": {"beta": 0.0}, "rebel": {"eta": 1e-3}}.get(name, {})
    objective = build_objective({"name": name, **knobs})
    assert objective.channels == ("log_importance",)
    recorder = objective.evidence.recorder(objective.arrays)
    assert not recorder.needs_reference
    bare, relative = sampled(TrajectoryRecorder(needs_reference=False)), sampled(TrajectoryRecorder())
    assert "log_ratio" not in bare.stored and np.abs(relative.stored["log_ratio"]).min() > 0
    np.testing.assert_array_equal(bare.stored["latents"], relative.stored["latents"])
    metrics = []
    for rollout in (bare, relative):
        policy = moved(StubPolicy(), 0.06)
        metrics.append(build(policy, {"name": name, **knobs}).update(rollout))
    assert abs(metrics[0]["logratio"]) > 1e-5
    for key in ("loss", "grad_norm", "logratio", "approx_kl"):
        assert metrics[0][key] == pytest.approx(metrics[1][key], rel=1e-3, abs=1e-7), key
    assert "logratio_ref" not in metrics[0]


def test_what_compares_with_the_reference_asks_for_it() -> None:
    needs = {
        name: method.evidence.recorder(build_objective({"name": name}).arrays) for name, method in OBJECTIVES.items()
    }
    assert {name for name, recorder in needs.items() if recorder.needs_reference} == {"prdp", "grpo", "tempflow_grpo"}
    assert {name for name, recorder in needs.items() if not recorder.needs_float32} == {
        "reward_weighted_regression", "best_of_n", "denoising", "diffusion_dpo", "crd", "nft", "awm", "dgpo",
    }  # fmt: skip


def test_outputs_of_half_the_memory_are_the_same_to_both_sides() -> None:
    full, half = sampled(TrajectoryRecorder()), sampled(TrajectoryRecorder(output_dtype="float16"))
    assert half.stored["base_output"].dtype == np.float16
    np.testing.assert_array_equal(half.stored["base_output"], full.stored["base_output"].astype(np.float16))
    np.testing.assert_array_equal(half.stored["latents"], full.stored["latents"])
    ratios = half.stored["log_ratio"], full.stored["log_ratio"]
    assert 0 < np.abs(ratios[0] - ratios[1]).max() < 0.01 * np.abs(ratios[1]).max()
    errors = [
        build(moved(StubPolicy()), {"name": "prdp"}).update(dataclasses.replace(one, weights_version=0))["ratio_error"]
        for one in (full, half)
    ]
    assert errors[1] < 2 * errors[0] < 0.5 * np.abs(ratios[0] - ratios[1]).max(), "both sides round the same outputs"
    kinds = [Trajectory(output_dtype="float32"), Trajectory(output_dtype="float16")]
    sizes = [kind.stored_latents(SAMPLER, TRANSITIONS.noisy, ("log_ratio",)) for kind in kinds]
    assert [size["outputs of the reference"] for size in sizes] == [STEPS, STEPS / 2]


def used_cells(learner: Learner, rollout: Rollout) -> np.ndarray:
    objective = learner.objective
    names = (*objective.channels, *further_passes(objective))
    return used(objective, names, learner_data(rollout), {}, learner.cells(rollout))


@pytest.mark.parametrize("size", [3, 4])
def test_an_image_whose_coefficients_cancel_is_not_left_out(size: int) -> None:
    """The second of three images: preferred to one, and another preferred to it."""
    policy = StubPolicy()
    rollout = stub_rollout(policy, TRANSITIONS, size=size)
    learner = build(moved(policy), {"name": "diffusion_dpo", "pairs": "all", "beta": 3.0, "draws": 2})
    assert len(used_cells(learner, rollout)) == 3 * size * 2
    extremes = build(policy, {"name": "diffusion_dpo", "draws": 2})
    assert len(used_cells(extremes, rollout)) == 3 * 2 * 2


def test_a_draw_beyond_a_clip_is_not_left_out() -> None:
    """Where no difference is as small as the clip, random ones are beyond it, on the side that each advantage tells."""
    rollout = stub_rollout(StubPolicy(), TRANSITIONS)
    for objective in (
        {"name": "dgpo", "clip_range": 1e-12, "kl": 0.0},
        {"name": "grpo", "evidence": "denoising", "clip_range": 1e-12, "beta": 0.0},
    ):
        learner = build(StubPolicy(), {**objective, "draws": 2})
        assert len(used_cells(learner, rollout)) == 12 * 2


def learner_data(rollout: Rollout) -> dict[str, np.ndarray]:
    assert rollout.rewards is not None
    return {"rewards": rollout.rewards, "group_ids": rollout.group_ids}


def towards(
    denoising: torch.Tensor, denoising_old: torch.Tensor, rewards: torch.Tensor, group_ids: torch.Tensor
) -> tuple[torch.Tensor, dict[str, float]]:
    """Squared differences of gains over the old policy as predictions of reward differences."""
    gain = by_group((denoising - denoising_old).mean(1), group_ids)
    error = differences(gain) - differences(by_group(rewards, group_ids))
    return error.square().mean(), {"gain": (denoising - denoising_old).abs().mean().item()}


def pulled(log_ratio: torch.Tensor, rewards: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
    return (log_ratio.mean(1) - rewards).square().mean(), {}


def test_metrics_do_not_depend_on_what_a_loss_takes() -> None:
    rollout = sampled(TrajectoryRecorder())
    own, known = ({"name": None, "_target_": f"{__name__}.pulled"}, {"name": "prdp"})
    metrics = [build(moved(StubPolicy(), 0.06), objective).update(rollout) for objective in (own, known)]
    for key in ("logratio", "logratio_ref", "approx_kl"):
        assert metrics[0][key] == metrics[1][key] != 0


METHOD = Method(towards, Denoising(draws=2), old_policy=OldPolicy())
OWN = {"name": None, "_target_": f"{__name__}.METHOD"}


@pytest.mark.parametrize(
    ("knobs", "decays"),
    [
        ({}, [0.0, 0.0, 0.0]),
        ({"old_decay": 0.5}, [0.5, 0.5, 0.5]),
        ({"old_decay_rise": 0.2, "old_decay_delay": 1, "old_decay_limit": 0.3}, [0.0, 0.2, 0.3]),
    ],
)
def test_the_old_policy_follows_at_its_decay(knobs: dict[str, float], decays: list[float]) -> None:
    learner = build(StubPolicy(), {**OWN, **knobs})
    rollout = stub_rollout(StubPolicy(), TRANSITIONS)
    expected = learner.weights().tensors
    for decay in decays:
        learner.update(rollout)
        now = learner.weights().tensors
        expected = {name: decay * expected[name] + (1 - decay) * value for name, value in now.items()}
        old = learner.engine.weights("old", 0).tensors
        for name, value in old.items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-12)


def test_evidence_of_the_old_policy_is_its_own() -> None:
    """The gain is 0 while both are the same; with a slow old policy it is that to the start, and after a resume too."""
    rollout = stub_rollout(StubPolicy(), TRANSITIONS)
    fast, slow = (build(StubPolicy(), {**OWN, "old_decay": decay}) for decay in (0.0, 0.999))
    gains = [[learner.update(rollout)["gain"] for _ in range(3)] for learner in (fast, slow)]
    assert gains[0] == [0.0, 0.0, 0.0]
    assert gains[1][0] == 0.0 < gains[1][1] < gains[1][2]
    resumed = build(StubPolicy(seed=3), {**OWN, "old_decay": 0.999})
    resumed.load_state(*slow.state())
    assert resumed.update(rollout)["gain"] == slow.update(rollout)["gain"]
    assert resumed.weights().checksum == slow.weights().checksum
    tensors, scalars = slow.state()
    with pytest.raises(ValueError, match="names differ"):
        resumed.load_state({key: value for key, value in tensors.items() if not key.startswith("old/")}, scalars)


def test_the_old_policy_samples_where_the_method_says_so() -> None:
    rollout = stub_rollout(StubPolicy(), TRANSITIONS)
    learner = build(StubPolicy(), {**OWN, "old_decay": 0.9, "old_samples": True})
    learner.update(rollout)
    published, now = learner.weights(), learner.engine.weights("policy", 1)
    assert published.checksum == learner.engine.weights("old", 1).checksum != now.checksum
    assert learner.evaluation_weights().checksum == now.checksum


class Wrong(Denoising):
    """Gives what `wrong` makes of the right values."""

    def values(self, *args: Any, **kwargs: Any) -> Any:
        return self.wrong(super().values(*args, **kwargs)["denoising"])

    wrong: Any = staticmethod(lambda values: {"denoising": values})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda values: {"denoising": values[:1]}, r"Wrong\.values returned 'denoising' of shape \(1,\), expected"),
        (lambda values: {"denoising": values.sum()}, r"'denoising' of shape \(\), expected \(\d+,\)"),
        (lambda values: {"denoisng": values}, r"returned denoisng, expected 'denoising' among it"),
        (lambda values: values, r"returned a Tensor, expected tensors by the names of channels"),
        (lambda values: {"denoising": values.detach()}, r"'denoising' without a gradient"),
    ],
)
def test_what_evidence_gives_is_checked(wrong: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Wrong, "wrong", staticmethod(wrong))
    monkeypatch.setitem(OBJECTIVES, "best_of_n", dataclasses.replace(OBJECTIVES["best_of_n"], evidence=Wrong()))
    policy = StubPolicy()
    sampler = Sampler(policy, SAMPLER, TRANSITIONS, Wrong().recorder(()))
    rollout = sampler.sample(PROMPTS, 4, 3).scored(np.arange(12.0), {})
    with pytest.raises(ValueError, match=message):
        build(policy, {"name": "best_of_n"}).update(rollout)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            {"values": lambda *of: {"denoising": Denoising.values(*of)["denoising"] / torch.tensor(of[5] - 1)}},
            r"'denoising' of update 0 is -inf at image \d+, column 1, epoch 0: Own evidence must be finite",
        ),
        (
            {"sampled": ("denoising",), "guard": lambda self, arrays: "denoising"},
            r"Own\.guard names 'denoising', which Own\.stored does not give of the rollout; it gives nothing",
        ),
    ],
    ids=["not finite", "guard"],
)
def test_what_evidence_says_of_a_rollout_is_checked(
    members: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = dataclasses.dataclass(frozen=True)(type("Own", (Denoising,), members))()
    monkeypatch.setitem(OBJECTIVES, "best_of_n", dataclasses.replace(OBJECTIVES["best_of_n"], evidence=own))
    with pytest.raises(ValueError, match=message):
        build(StubPolicy(), {"name": "best_of_n"}).update(stub_rollout(StubPolicy(), TRANSITIONS))


def test_columns_that_a_run_was_not_planned_with_are_refused() -> None:
    rollout = stub_rollout(StubPolicy(), TRANSITIONS)
    check_columns(rollout, Denoising(draws=3), 3)
    with pytest.raises(ValueError, match=r"Denoising\.shape says 3 columns and Denoising\.columns 4; they must be the"):
        check_columns(rollout, Denoising(draws=3), 4)
    with pytest.raises(ValueError, match="the rollout has no trajectories"):
        check_columns(dataclasses.replace(rollout, stored={}), Trajectory(), STEPS)


@pytest.mark.parametrize("trajectory", [True, False])
def test_latents_that_are_not_finite_are_no_picture(trajectory: bool) -> None:
    class Overflowing(StubPolicy):
        def output(self, latents: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
            output = super().output(latents, *rest, **named)
            states = rest[1].fields["states"]
            return torch.where(states.view(-1, 1, 1, 1) == 2.0, torch.full_like(output, torch.inf), output)

    sampler = Sampler(Overflowing(), SAMPLER, TRANSITIONS, FinalLatents())
    message = (
        r"image 0 of the prompt 'xx' \(epoch 0\) has latents that are not finite, and so have 0 others: weights of "
        r"version 0 in float32, sampler\.kind=ddim, sampler\.eta=1, sampler\.guidance_scale=1"
    )
    with pytest.raises(ValueError, match=message):
        sampler.sample(PROMPTS, 4, 3, trajectory=trajectory)


def test_what_a_recording_keeps_is_checked() -> None:
    class Short(FinalLatents):
        def finish(self, latents: torch.Tensor) -> dict[str, np.ndarray]:
            return {"final_latents": latents[:1].numpy()}

        def start(self, chains: Any) -> FinalLatents:
            return self

    sampler = Sampler(StubPolicy(), SAMPLER, TRANSITIONS, Short())
    with pytest.raises(ValueError, match=r"kept 'final_latents' as an array of shape \(1, 2, 2, 2\), .* 5 rows"):
        sampler.sample(PROMPTS, 4, 3)
