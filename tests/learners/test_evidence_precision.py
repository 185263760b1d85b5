"""Evidence in less than float32: fewer passes, the same gradient, and an error of the coefficients that is told."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from prdp.config import LearnerConfig, ModelConfig, SamplerConfig, TrainConfig
from prdp.configuration.bounds import check_bounds
from prdp.configuration.network_passes import checked_passes, image_passes
from prdp.configuration.objective_bounds import objective_problems
from prdp.diffusion import build_policy, build_sampler
from prdp.diffusion.determinism import tf32_products
from prdp.diffusion.diffusers_policy import DiffusersPolicy
from prdp.evidence.denoising import FinalLatents
from prdp.learners import build_learner
from prdp.learners.learner import Learner
from prdp.learners.precision import check_rounding, evidence_precision, tells_evidence
from prdp.learners.precision_watch import PrecisionWatch
from prdp.support.errors import ConfigError, UserError
from prdp.types import PromptBatch, Rollout

SAMPLER = SamplerConfig(steps=3, guidance_scale=1.0, eta=0.0, timestep_spacing="trailing")
PRDP = {"name": "prdp", "evidence": "denoising", "beta": 1e-2, "clip_range": None, "draws": 2, "kl": 0.2}
IMAGES = 4
BACKENDS = torch.backends.cuda.matmul, torch.backends.cudnn


def learner(folder: Path, objective: dict[str, Any] = PRDP, updates: int = 1, **changes: Any) -> Learner:
    settings: dict[str, Any] = {"lora_rank": 4, "learning_rate": 1e-4, "max_grad_norm": 1e9, "microbatch": 8}
    config = LearnerConfig(**{**settings, **changes})
    policy = build_policy(ModelConfig(path=str(folder)), config, seed=0, keep_reference=True)
    table = policy.process.transitions(SAMPLER)
    found = build_learner(policy, table, SAMPLER.guidance_scale, config, objective, updates_per_epoch=updates)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # a policy that is not its reference
        for value in policy.weights.parameters.values():
            value.add_(0.05 * torch.randn(value.shape, generator=generator))
    return found


def drawn(folder: Path) -> Rollout:
    sampler = build_sampler(
        ModelConfig(path=str(folder)), LearnerConfig(lora_rank=4), SAMPLER, seed=0, recorder=FinalLatents()
    )
    prompts = PromptBatch(0, 0, ("a small red circle", "two stars"), ({}, {}))
    return sampler.sample(prompts, IMAGES, seed=3).scored(np.random.default_rng(0).normal(size=2 * IMAGES), {})


def cells_passed(one: Learner, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers that will be those of cells without and with gradient."""
    policy: Any = one.engine.policy
    counts, output = [0, 0], policy.output

    def counting(latents: torch.Tensor, *arguments: Any) -> torch.Tensor:
        counts[torch.is_grad_enabled()] += len(latents)
        return output(latents, *arguments)

    monkeypatch.setattr(policy, "output", counting)
    return counts


def gradient(one: Learner) -> torch.Tensor:
    return torch.cat([value.grad.flatten() for value in one.engine.policy.weights.parameters.values()])


@pytest.mark.parametrize(("microbatch", "expected"), [(8, (16, 16)), (4, (32, 16))])
def test_half_precision_saves_passes_and_keeps_the_gradient(
    narrow_pipeline: Path, microbatch: int, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group has 8 cells. In a microbatch that holds it, the reference's pass is the only one without gradient."""
    rollout = drawn(narrow_pipeline)
    exact, half = (
        learner(narrow_pipeline, autocast="bfloat16", evidence_precision=one, microbatch=microbatch)
        for one in ("float32", "half")
    )
    before = exact.update(rollout)
    counts = cells_passed(half, monkeypatch)
    metrics = half.update(rollout)
    assert counts[0] > expected[0], "some are checked against float32"
    assert torch.nn.functional.cosine_similarity(gradient(exact), gradient(half), dim=0) > 0.9999
    assert 0 < metrics["evidence_noise"] < 1e-2
    assert 0 < metrics["coefficient_noise"] < 1e-3
    assert metrics["loss"] == pytest.approx(before["loss"], rel=1e-3)
    assert "evidence_noise" not in before
    half.update(rollout)
    counts[:] = 0, 0
    half.update(rollout)
    assert tuple(counts) == expected, "once for each rollout, and again after a run's first update"


def test_the_passes_that_are_told(narrow_pipeline: Path) -> None:
    changes = {"mode": "lora", "autocast": "bfloat16", "microbatch": 8}
    config = TrainConfig(
        output_dir="x", reward={"_target_": "x"}, model=ModelConfig(path=str(narrow_pipeline)), sampler=SAMPLER,
        images_per_prompt=IMAGES, objective=PRDP, learner=LearnerConfig(**changes),
    )  # fmt: skip
    assert (image_passes(config).evidence, image_passes(config).gradient) == (6, 2)
    config.learner.evidence_precision = "half"
    assert (image_passes(config).evidence, image_passes(config).gradient) == (2, 2)
    assert checked_passes(config) == 2 * 2 * 16, "the policy and the reference, as they are and better"
    config.learner.autocast = "float16"  # whose coefficients are known before the gradient
    assert image_passes(config).evidence == 4


def test_coefficients_that_would_be_rounding_end_the_run(narrow_pipeline: Path) -> None:
    sharp = {"name": "diffusion_dpo", "beta": 1e7, "draws": 2}
    one = learner(narrow_pipeline, sharp, autocast="bfloat16", evidence_precision="half")
    before = one.weights().checksum
    with pytest.raises(UserError, match=r"update 0: rounding of evidence in bfloat16 .* learner.evidence_precision="):
        one.update(drawn(narrow_pipeline))
    assert one.weights().checksum == before


def test_policies_that_have_moved_apart_are_measured_anew(
    narrow_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the same weights err alike, and no cell is computed. A clip acts from the second update on."""
    clipped = {"name": "ddpo", "evidence": "denoising", "draws": 2, "clip_range": 1e-5}
    one = learner(narrow_pipeline, clipped, updates=2, autocast="bfloat16", evidence_precision="half")
    rollout = drawn(narrow_pipeline)
    counts = cells_passed(one, monkeypatch)
    assert "coefficient_noise" not in one.update(rollout)
    assert counts == [0, 16]
    with pytest.raises(UserError, match="update 1: rounding of evidence in bfloat16"):
        one.update(rollout)


def test_a_batch_whose_rewards_are_all_equal_ends_no_run(narrow_pipeline: Path) -> None:
    """Its coefficients are next to nothing, and rounding a large part of them."""
    predicting = {"name": "crd", "draws": 2, "kl": 0.0}
    one = learner(narrow_pipeline, predicting, autocast="bfloat16", evidence_precision="half", learning_rate=1e-7)
    rollout = drawn(narrow_pipeline)
    one.update(rollout)
    tied = rollout.scored(np.ones(len(rollout)), {})
    metrics = one.update(dataclasses.replace(tied, prompts=dataclasses.replace(rollout.prompts, epoch=1)))
    assert metrics["coefficient_noise"] > 0.1
    assert metrics["rewards_constant"] == 1.0


def test_coefficients_that_are_no_number_end_the_run() -> None:
    answers = iter([{"one": np.ones((1, 1)), "other": np.ones((1, 1))}, {"one": np.ones((1, 1)), "other": _NAN}])
    objective: Any = SimpleNamespace(coefficients=lambda *_: SimpleNamespace(tables=next(answers)))
    engine: Any = SimpleNamespace(evidence_precision="bfloat16")
    watch = PrecisionWatch(engine, objective, LearnerConfig())
    watch._errors = {"one": np.ones(1)}
    with pytest.raises(UserError, match="by nan of themselves"):
        watch.check_coefficients({"one": np.ones((1, 1))}, {}, None, update=0, teaches=True)


_NAN = np.full((1, 1), np.nan)


def test_what_a_pass_with_gradient_in_float32_tells_has_no_error_of_tf32(
    narrow_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference alone, which takes a pass of its own, is measured: 16 cells, and twice the 16 of the batch."""
    one = learner(narrow_pipeline, {**PRDP, "kl": 0.0}, evidence_precision="tf32")
    rollout = drawn(narrow_pipeline)
    counts = cells_passed(one, monkeypatch)
    one.update(rollout)
    assert counts == [16 + 2 * 16, 16]


def test_noise_is_told_once_between_its_bounds(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert not check_rounding(0.01, "tf32", 0, told=False)
        assert check_rounding(0.1, "tf32", 1, told=False)
        assert check_rounding(0.1, "tf32", 2, told=True)
    assert [one.getMessage() for one in caplog.records] == [
        "update 1: rounding of evidence in tf32 moves the coefficients by 0.1 of themselves (coefficient_noise)"
    ]
    with pytest.raises(UserError):
        check_rounding(float("nan"), "tf32", 3, told=True)


def test_what_tells_evidence() -> None:
    assert tells_evidence("float32", "float32")
    assert tells_evidence("float32", "tf32")
    assert tells_evidence("bfloat16", "bfloat16")
    assert not tells_evidence("bfloat16", "tf32")
    assert not tells_evidence("float16", "float16")
    assert evidence_precision("half", "float32") == "float32"
    assert evidence_precision("half", "bfloat16") == "bfloat16"
    assert evidence_precision("tf32", "bfloat16") == "tf32"


def test_tf32_is_for_passes_of_evidence_alone(narrow_pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tf32_products(False):
        flags_in_an_update(narrow_pipeline, monkeypatch)


def flags_in_an_update(narrow_pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = learner(narrow_pipeline, autocast="bfloat16", evidence_precision="tf32")
    policy: Any = one.engine.policy
    seen, output = set(), policy.output

    def watched(*arguments: Any) -> torch.Tensor:
        seen.add((torch.is_grad_enabled(), *(backend.allow_tf32 for backend in BACKENDS)))
        return output(*arguments)

    monkeypatch.setattr(policy, "output", watched)
    metrics = one.update(drawn(narrow_pipeline))
    # The third are the cells that are checked against float32.
    assert seen == {(False, True, True), (True, False, False), (False, False, False)}
    assert metrics["evidence_noise"] == 0.0, "a CPU has no TF32"
    assert not any(backend.allow_tf32 for backend in BACKENDS)
    with pytest.raises(RuntimeError, match="ends"), tf32_products(True):
        raise RuntimeError("ends")
    assert not any(backend.allow_tf32 for backend in BACKENDS)


def test_a_precision_that_there_is_not_is_told_once() -> None:
    with pytest.raises(ConfigError) as told:
        check_bounds(
            TrainConfig(
                output_dir="x", reward={"_target_": "x"}, objective=PRDP, learner=LearnerConfig(evidence_precision="f8")
            )
        )
    lines = [line for line in str(told.value).splitlines() if "evidence_precision" in line]
    assert lines == ["learner.evidence_precision=f8: must be one of float32, tf32, half"]


@pytest.mark.parametrize(
    ("objective", "changes", "told"),
    [
        (PRDP, {"evidence_precision": "tf32", "framework": "jax"}, "must be float32 for learner.framework=jax"),
        (
            {"name": "prdp"},
            {"evidence_precision": "half", "autocast": "bfloat16"},
            "must be float32 or tf32 for the trajectory evidence of objective.name=prdp, which half precision "
            "rounds away",
        ),
        (
            {"name": "prdp"},
            {"evidence_precision": "tf32"},
            "the trajectory evidence of objective.name=prdp repeats less exactly than learner.ratio_tolerance=0.0001; "
            "set that to 0.001",
        ),
    ],
)
def test_what_does_not_fit_is_refused(objective: dict[str, Any], changes: dict[str, Any], told: str) -> None:
    config = TrainConfig(
        output_dir="x", reward={"_target_": "x"}, objective=objective, learner=LearnerConfig(**changes)
    )
    [problem] = [line for line in objective_problems(config) if "evidence_precision" in line]
    assert problem.startswith(f"learner.evidence_precision={changes['evidence_precision']}: ")
    assert problem.endswith(told)


NFT = {"name": "nft", "draws": 2}


@pytest.mark.parametrize("objective", [PRDP, NFT])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_adapters_that_are_converted_once_learn_the_same(
    narrow_pipeline: Path, objective: dict[str, Any], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollout = drawn(narrow_pipeline)

    def learned() -> tuple[Learner, list[dict[str, float]]]:
        one = learner(narrow_pipeline, objective, 2, autocast=dtype, evidence_precision="half", microbatch=4)
        told = [one.update(rollout) for _ in range(2)]
        return one, [{name: value for name, value in each.items() if name != "time/learn"} for each in told]

    converted, metrics = learned()
    monkeypatch.setattr(DiffusersPolicy, "converts_adapters", None)
    anew, expected = learned()
    assert metrics == expected
    for name, value in converted.engine.policy.weights.parameters.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, anew.engine.policy.weights.parameters[name]), name


def test_adapters_are_float32_again_after_a_pass_that_fails(
    narrow_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollout = drawn(narrow_pipeline)
    one = learner(narrow_pipeline, autocast="bfloat16", evidence_precision="half", microbatch=4)
    parameters = one.engine.policy.weights.parameters
    before, seen = {name: value.clone() for name, value in parameters.items()}, []

    def failing(*arguments: Any) -> torch.Tensor:
        seen.extend(value.dtype for value in parameters.values())
        raise RuntimeError("the device is lost")

    monkeypatch.setattr(one.engine.policy, "output", failing)
    with pytest.raises(RuntimeError, match="the device is lost"):
        one.update(rollout)
    assert set(seen) == {torch.bfloat16}
    assert all(torch.equal(value, before[name]) for name, value in parameters.items())
