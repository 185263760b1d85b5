"""Scores of finite differences: against the formula, of every family, and what is kept for them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from narrow_flow import narrow_pipeline
from omegaconf import OmegaConf
from stub_policy import SCHEDULER, StubPolicy

from prdp.config import LearnerConfig, ModelConfig, SamplerConfig
from prdp.configuration.typed import typed
from prdp.diffusion import build_policy
from prdp.diffusion.process import Process
from prdp.diffusion.rectified_flow import RectifiedFlow
from prdp.diffusion.sampler import Sampler
from prdp.diffusion.transitions import Transitions
from prdp.diffusion.variance_preserving import VariancePreserving
from prdp.evidence import FiniteDifference
from prdp.evidence.base import Pass
from prdp.evidence.finite_difference import VisitedSteps
from prdp.evidence.trajectory import TrajectoryRecorder
from prdp.learners import build_learner
from prdp.learners.guards import RatioError
from prdp.objectives import build_objective
from prdp.support.errors import ConfigError
from prdp.types import PromptBatch, Rollout
from prdp.worlds.mixtures.grammar import prompt_at

STEPS = 4
ALIKE = SamplerConfig(steps=STEPS, guidance_scale=1.0, microbatch=5, shared_start_noise=True, start_churn=0.01)
PROMPTS = PromptBatch(1, 2, ("x", "xx", "xxx"), ({}, {}, {}))


def processes() -> dict[str, Process]:
    found: dict[str, Process] = {
        prediction: VariancePreserving({**SCHEDULER, "prediction_type": prediction})
        for prediction in ("epsilon", "v_prediction", "sample")
    }
    return {**found, "velocity": RectifiedFlow({"shift": 3.0})}


def table(process: Process) -> Transitions:
    kind = "euler" if isinstance(process, RectifiedFlow) else "ddim"
    return process.transitions(dataclasses.replace(ALIKE, kind=kind))


def rollout_of(rng: np.random.Generator, images: int = 4) -> Rollout:
    """Random latents and outputs, in float64."""
    shape = (3 * images, STEPS, *StubPolicy.latent_shape)
    return Rollout(
        prompts=PROMPTS,
        images_per_prompt=images,
        images=np.zeros((len(shape), 4, 4, 3), np.uint8),
        weights_version=0,
        weights_checksum="",
        stored={
            "step_latents": rng.normal(size=shape),
            "step_outputs": rng.normal(size=shape),
            "steps": np.tile(np.arange(STEPS), (3 * images, 1)),
            "final_latents": rng.normal(size=(3 * images, *StubPolicy.latent_shape)),
        },
    )


@pytest.mark.parametrize("prediction", list(processes()))
def test_the_score_is_the_formula(prediction: str) -> None:
    """Written out with the large numbers that cancel, and with the direction that each prediction is moved in."""
    policy, process, rng = StubPolicy(), processes()[prediction], np.random.default_rng(0)
    policy.process, transitions, rollout = process, table(process), rollout_of(rng)
    images, columns = np.array([0, 1, 6, 7, 7, 10]), np.array([3, 0, 1, 2, 0, 1])
    conditions = policy.encode(rollout.image_prompts * 4)[images]
    [score] = FiniteDifference().values(
        Pass(policy, transitions, 1.0, 0, 0), rollout, conditions, images, columns, ("score",)
    ).values()

    stored = rollout.stored
    for row, (image, column) in enumerate(zip(images, columns, strict=True)):
        x, old = (torch.from_numpy(stored[name][image, column])[None] for name in ("step_latents", "step_outputs"))
        time = transitions.times[column : column + 1]
        with torch.no_grad():
            output = policy.output(x, torch.from_numpy(time), conditions[np.array([row])], 1.0)[0].numpy()
        partner = image + 1 if image % 2 == 0 else image - 1
        half = (stored["final_latents"][image] - stored["final_latents"][partner]) / 2
        direction = half / (np.mean(half**2) + 1e-6)
        target = old[0].numpy() + (direction if prediction == "sample" else -direction)
        expected = -np.mean((output - target) ** 2) + np.mean(direction**2)
        assert score[row].item() == pytest.approx(expected, rel=1e-9)

        moved = process.clean(x, time, torch.from_numpy(target)[None]) - process.clean(x, time, old)
        along = float((moved[0].numpy() * half).sum())
        assert along > 0.999 * np.linalg.norm(moved) * np.linalg.norm(half), "the clean latents move to the image"


def test_the_score_of_a_small_change_does_not_cancel() -> None:
    """A pair that all but coincides has a direction of length 1000, whose square is 10^8 times the score."""
    policy, rollout = StubPolicy(), rollout_of(np.random.default_rng(0), images=2)
    policy.network.float()
    kept = {name: value.astype(np.float32) for name, value in rollout.stored.items() if name != "steps"}
    kept["final_latents"][1::2] = kept["final_latents"][::2] + 1e-3
    transitions, conditions = table(policy.process), policy.encode(PROMPTS.texts).map(torch.Tensor.float)
    images, columns = np.array([0, 2, 4]), np.zeros(3, np.int64)
    scores = []
    for change in (0.0, 1e-5):
        with torch.no_grad():
            policy.network[2].bias.add_(change)
            outputs = policy.output(
                torch.from_numpy(kept["step_latents"][images, columns]),
                torch.full((3,), float(transitions.times[0])), conditions, 1.0,
            )  # fmt: skip
        if not change:
            kept["step_outputs"][images, columns] = outputs.numpy()
        found = FiniteDifference().values(
            Pass(policy, transitions, 1.0, 0, 0), rollout.storing(**kept), conditions, images, columns, ("score",)
        )
        scores.append(found["score"].detach().numpy())
    np.testing.assert_array_equal(scores[0], 0.0)
    # 2 mean(d g) with d = 1e-5 and g = 0.5e-3 / (0.25e-6 + 1e-6) = 400.
    np.testing.assert_allclose(scores[1], 2 * 1e-5 * 400, rtol=0.05)


def sampled(sampler: SamplerConfig, recorder: Any = None, size: int = 4) -> Rollout:
    policy = StubPolicy()
    return Sampler(policy, sampler, recorder=recorder or VisitedSteps()).sample(PROMPTS, size, 3)


def test_all_visited_steps_are_kept_with_noise_or_without() -> None:
    noisy, whole = dataclasses.replace(ALIKE, eta=0.3), TrajectoryRecorder(needs_reference=False)
    mine, theirs = sampled(noisy).stored, sampled(noisy, whole).stored
    np.testing.assert_array_equal(mine["step_latents"], theirs["latents"][:, :-1])
    np.testing.assert_array_equal(mine["step_outputs"], theirs["base_output"])
    np.testing.assert_array_equal(mine["final_latents"].astype(np.float32), theirs["latents"][:, -1])
    quiet = dataclasses.replace(ALIKE, eta=0.0)
    mine, again = sampled(quiet).stored, sampled(dataclasses.replace(quiet, microbatch=3)).stored
    assert mine["steps"].tolist() == [list(range(STEPS))] * 12
    for name, value in mine.items():
        np.testing.assert_allclose(again[name], value, atol=1e-6, err_msg="a microbatch may part a pair")
    starts = mine["step_latents"][:, 0]
    assert 0 < np.abs(starts[1] - starts[0]).max() < np.abs(starts[4] - starts[0]).max()


@pytest.mark.parametrize(
    ("settings", "columns"),
    [
        ({"trained_share": 0.5, "eta": 0.0}, 2),
        ({"window": "random", "window_size": 2}, 2),
        ({"window": "fixed", "window_start": 1, "window_size": 2, "trained_share": 0.5}, 1),
    ],
)
def test_shares_and_windows_keep_fewer(settings: dict[str, Any], columns: int) -> None:
    sampler = dataclasses.replace(ALIKE, **settings)
    every, some = sampled(dataclasses.replace(sampler, trained_share=1.0)), sampled(sampler)
    evidence, noisy = FiniteDifference(output_dtype="float16"), np.arange(STEPS)
    assert some.stored["steps"].shape == (12, columns) == evidence.shape(some)
    assert evidence.columns(sampler, noisy) == columns
    assert list(evidence.stored_latents(sampler, noisy, ("score",)).values()) == [columns, columns / 2, 1.0]
    if settings.get("window") == "fixed":
        assert set(some.stored["steps"].ravel()) <= {1, 2}
    for image, steps in enumerate(some.stored["steps"]):
        assert (steps == some.stored["steps"][image // 4 * 4]).all(), "of a prompt alike"
        for name in ("step_latents", "step_outputs"):
            within = np.isin(every.stored["steps"][image], steps)
            np.testing.assert_array_equal(some.stored[name][image], every.stored[name][image, within])


def test_the_guard_of_an_on_policy_rollout() -> None:
    """Scores of the policy that sampled are 0: those of another are noticed, and half the memory is not."""
    objective = {"name": "fdfo", "output_dtype": "float16"}
    config = LearnerConfig(mode="full", learning_rate=1e-3, ratio_tolerance=0.02)
    rollout = sampled(ALIKE, build_objective(objective).evidence.recorder(("score",)))
    assert rollout.stored["step_outputs"].dtype == np.float16
    rollout = rollout.scored(np.random.default_rng(0).normal(size=12), {})
    learner = build_learner(StubPolicy(), table(StubPolicy().process), 1.0, config, objective, seed=5)
    assert 1e-5 < learner.update(rollout)["ratio_error"] < 0.02
    other = build_learner(StubPolicy(seed=1), table(StubPolicy().process), 1.0, config, objective, seed=5)
    with pytest.raises(RatioError, match=r"evidence of an on-policy .* image \d+, step \d \(time \d+\).*stored 0"):
        other.update(rollout)


def test_what_a_rollout_must_hold() -> None:
    learner = build_learner(
        StubPolicy(), table(StubPolicy().process), 1.0, LearnerConfig(mode="full"), {"name": "fdfo"}, seed=5
    )
    odd = sampled(ALIKE, size=3)
    with pytest.raises(ValueError, match="images_per_prompt is 3, expected an even number"):
        learner.update(odd.scored(np.zeros(9), {}))
    trajectories = sampled(ALIKE, TrajectoryRecorder(needs_reference=False))
    with pytest.raises(ValueError, match=r"no 'step_latents', which FiniteDifference\.keeps names"):
        learner.update(trajectories.scored(np.zeros(12), {}))


FDFO = {
    "output_dir": "x", "objective": {"name": "fdfo"}, "reward": {"_target_": "a.b"},
    "prompts": {"train": {"_target_": "a.b"}, "heldout": {"_target_": "a.b"}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "sampler.shared_start_noise=false: must be true for objective.name=fdfo"),
        (["sampler.shared_start_noise=true", "images_per_prompt=5"], "images_per_prompt=5: must be even"),
        (["sampler.shared_start_noise=true", "images_per_prompt=1"], "images_per_prompt=1: must be at least 2"),
        (["sampler.shared_start_noise=true", "sampler.eta=0"], "sampler.shared_start_noise=true: must be false where"),
    ],
)
def test_what_a_configuration_must_say(words: list[str], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        typed(OmegaConf.merge(FDFO, OmegaConf.from_dotlist(words)))
    [line] = str(caught.value).splitlines()
    assert line.startswith(told)


@pytest.mark.parametrize("sampler", [{}, {"sampler.eta": 0}, {"sampler.kind": "euler"}, {"sampler.window": "random"}])
def test_what_a_configuration_may_say(sampler: dict[str, Any]) -> None:
    words = {"sampler.shared_start_noise": "true", "sampler.start_churn": 0.01, **sampler}
    changed = OmegaConf.from_dotlist([f"{key}={value}" for key, value in words.items()])
    assert typed(OmegaConf.merge(FDFO, changed)).sampler.start_churn == 0.01


@pytest.fixture(scope="module")
def flow_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flow")
    narrow_pipeline().save_pretrained(folder)
    return folder


FAMILIES: dict[str, dict[str, Any]] = {
    "eps": {"eta": 0.1},
    "eps, guided, without noise": {"eta": 0.0, "guidance_scale": 3.0},
    "flow": {"kind": "edm_churn", "eta": 0.05},
    "flow without noise": {"kind": "euler"},
    "mixtures": {"eta": 0.1},
}


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_family_learns(family: str, small_pipeline: Path, flow_folder: Path) -> None:
    """On-policy scores are rounding, and an update moves the outputs towards the better image of each pair."""
    if family == "mixtures":
        model, texts = ModelConfig(family="gaussian_mixtures"), (prompt_at("train", 0), prompt_at("train", 1))
    elif family.startswith("flow"):
        model = ModelConfig(family="stable_diffusion_3", path=str(flow_folder), max_sequence_length=2, device="cpu")
        texts = ("a", "b")
    else:
        model, texts = ModelConfig(path=str(small_pipeline), device="cpu"), ("a", "b")
    learner_config = LearnerConfig(mode="full", learning_rate=1e-5)
    settings = dataclasses.replace(ALIKE, steps=3, **FAMILIES[family])
    policy = build_policy(model, learner_config, seed=0, keep_reference=False)
    transitions = policy.process.transitions(settings)
    learner = build_learner(policy, transitions, settings.guidance_scale, learner_config, {"name": "fdfo"}, seed=0)
    rollout = Sampler(policy, settings, transitions, learner.recorder).sample(
        PromptBatch(0, 0, texts, ({}, {})), 2, seed=4
    )
    rollout = rollout.scored(np.array([1.0, 0.0, 0.0, 1.0]), {})
    first, second = learner.update(rollout), learner.update(rollout)
    assert first["ratio_error"] < 2e-5
    assert first["trust_region_used"] == 0.0 < second["trust_region_used"]
    assert second["loss"] < first["loss"]
