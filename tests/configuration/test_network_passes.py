"""The passes of an image that a run tells of beforehand, beside those that are counted while it samples and learns."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from points_run import points_run

from prdp import api
from prdp.config import TrainConfig
from prdp.configuration.network_passes import ImagePasses, checked_passes, image_passes
from prdp.configuration.typed import typed
from prdp.evidence import Denoising, FiniteDifference, Trajectory
from prdp.objectives import OBJECTIVES
from prdp.worlds.mixtures.policy import GaussianMixturesPolicy

IMAGES = 12
STILL = {"old_decay": 0.0, "old_decay_rise": 0.0}
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in OBJECTIVES),
    *((name, {"evidence": "denoising"}) for name, method in OBJECTIVES.items() if method.also),
    ("grpo", {"beta": 0.0}),
    ("flow_dppo", {"beta": 0.1}),
    ("fdfo", {"kl": 1.0}),
    ("nft", STILL),
    ("awm", STILL),
    ("dgpo", {**STILL, "old_is_reference": True}),
    ("prdp", {"evidence": "denoising", "old_is_reference": True}),
    ("prdp", {"evidence": "denoising", "kl": 0.2}),
    ("prdp", {"evidence": "denoising", "kl": 0.2, "old_is_reference": True}),
]  # fmt: skip


def config_of(name: str, knobs: dict[str, Any], updates: int, microbatch: int) -> TrainConfig:
    evidence = knobs.get("evidence", OBJECTIVES[name].evidence.kind)
    draws = {} if evidence in ("trajectory", "finitedifference") else {"draws": 3}
    method = OBJECTIVES[name]
    # By default an old policy moves at once and is the policy itself at the first update of the epochs of this test.
    moves = {"old_decay": 0.5} if method.old_policy and name != "prdp" and "old_decay" not in knobs else {}
    beyond = {"clip_range": 10.0, "kl_threshold": 10.0}
    clip = {name: value for name, value in beyond.items() if name in method.loss_knobs}
    return typed(
        points_run(
            Path("unused"),
            objective={"name": name, **clip, **draws, **moves, **knobs},
            updates_per_epoch=updates,
            images_per_prompt=4,
            sampler={"shared_start_noise": name == "fdfo"},
            learner={"microbatch": microbatch},
        )
    )


def counted(config: TrainConfig, monkeypatch: pytest.MonkeyPatch, checked: int = 0) -> list[ImagePasses]:
    """Of each epoch of a run, passes an image.

    Args:
        checked: passes that are left out of the second one's evidence, and the first one with it.
    """
    counts: Counter[str] = Counter()
    output, phase = GaussianMixturesPolicy.output, ["sample"]

    def counting(self: Any, latents: torch.Tensor, *arguments: Any) -> torch.Tensor:
        reference = len(arguments) == 4 and arguments[3] is not None
        learned = "gradient" if torch.is_grad_enabled() else "evidence"
        sampling = "reference" if reference else "policy"
        counts[sampling if phase[0] == "sample" else learned] += len(latents)
        return output(self, latents, *arguments)

    monkeypatch.setattr(GaussianMixturesPolicy, "output", counting)
    parts = api.build(config)
    found, start = [], parts.learner.weights()
    for epoch in range(2):
        phase[0] = "sample"
        current = config.rollout_policy == "current" and not config.cluster.max_staleness
        parts.sampler.load_weights(parts.learner.weights() if current else start)
        rollout = parts.sampler.sample(parts.prompts.next(config.prompts_per_epoch, epoch), 4, config.seed)
        rollout = rollout.scored(*api.score(parts.reward, rollout.images, rollout.image_prompts))
        phase[0] = "learn"
        for _ in range(config.updates_per_epoch):
            parts.learner.update(rollout)
        if checked and not epoch:
            counts.clear()
        counts["evidence"] -= checked * epoch
        assert all(count % IMAGES == 0 for count in counts.values())
        names = [field.name for field in dataclasses.fields(ImagePasses)]
        found.append(ImagePasses(*(counts[name] // IMAGES for name in names)))
        counts.clear()
    return found


@pytest.mark.parametrize("microbatch", [5, 64])  # below a group's cells, and above
@pytest.mark.parametrize(("name", "knobs"), CASES)
def test_the_passes_that_are_told_are_those_of_a_run(
    name: str, knobs: dict[str, Any], microbatch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(name, knobs, 2, microbatch)
    # What a batch leaves out is not told before.
    for kind in (Trajectory, Denoising, FiniteDifference):
        monkeypatch.setattr(kind, "skips_unused", False)
    monkeypatch.setattr("prdp.learners.learner.strongest", lambda tables, cells, share: (cells, 0.0))
    first, second = counted(config, monkeypatch)
    assert second == image_passes(config)
    assert first.reference == 0, "the policy is its own reference"
    assert first.evidence <= second.evidence
    assert dataclasses.replace(first, reference=second.reference, evidence=second.evidence) == second


def computes_in(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the network say so; it computes in float32 all the same."""
    made = GaussianMixturesPolicy.__init__

    def made_in_half(self: Any, *arguments: Any, **named: Any) -> None:
        made(self, *arguments, **named)
        self.precision = precision

    monkeypatch.setattr(GaussianMixturesPolicy, "__init__", made_in_half)
    monkeypatch.setattr(api, "check", lambda config: None)  # this family is refused in half precision


WAYS = (("float32", "bfloat16"), ("half", "bfloat16"), ("half", "float16"), ("tf32", None))
KL = {"evidence": "denoising", "kl": 0.2}
HALF = [
    ("prdp", {}, "float32", "bfloat16", 5),
    ("prdp", {}, "tf32", None, 12),
    ("fdfo", {"kl": 1.0}, "float32", "bfloat16", 5),
    *(("prdp", KL, *way, microbatch) for way in WAYS for microbatch in (5, 12)),
    *((name, {}, *way, 12) for way in WAYS for name in ("crd", "dgpo", "awm")),
]


@pytest.mark.parametrize(("name", "knobs", "precision", "gradient", "microbatch"), HALF)
def test_the_passes_in_less_than_float32_are_those_of_a_run(
    name: str, knobs: dict[str, Any], precision: str, gradient: str | None, microbatch: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The network computes in float32 all the same, so that nothing is rounded; a group has up to 12 cells."""
    config = config_of(name, knobs, 2, microbatch)
    config.learner.evidence_precision, config.learner.autocast = precision, gradient
    computes_in(gradient or "float32", monkeypatch)
    for kind in (Trajectory, Denoising, FiniteDifference):
        monkeypatch.setattr(kind, "skips_unused", False)
    monkeypatch.setattr("prdp.learners.learner.strongest", lambda tables, cells, share: (cells, 0.0))
    assert counted(config, monkeypatch, checked_passes(config))[1] == image_passes(config)


@pytest.mark.parametrize("frozen", [False, True])
def test_of_rollouts_that_another_policy_has_drawn_nothing_is_known_before(
    frozen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of("prdp", {}, 1, 5)
    if frozen:
        config.rollout_policy = "reference"
    else:
        config.cluster.kind, config.cluster.max_staleness = "ray", 1
    told = image_passes(config)
    assert (told.evidence, told.gradient) == (2, 2)
    config.cluster.kind = "inline"
    _, found = counted(config, monkeypatch)
    assert dataclasses.replace(found, reference=told.reference) == told
    assert found.reference == 0, "in both epochs it is the start that draws"
    assert not frozen or told.reference == 0


def test_half_precision_learns_from_rollouts_of_the_start_by_evidence_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The loss is linear, but a pass with gradient tells rounding for a drift of the policy."""
    config = config_of("reinforce", {}, 1, 64)
    config.rollout_policy, config.learner.autocast = "reference", "bfloat16"
    computes_in("bfloat16", monkeypatch)
    monkeypatch.setattr(Trajectory, "skips_unused", False)
    monkeypatch.setattr("prdp.learners.learner.strongest", lambda tables, cells, share: (cells, 0.0))
    told = image_passes(config)
    assert told.evidence == 2
    assert counted(config, monkeypatch, checked_passes(config))[1] == told


def test_the_text_of_passes() -> None:
    assert ImagePasses(8, 7, 14, 7).text == "8 to sample + 7 of the reference; 7 with gradient + 14 without to learn"
    assert ImagePasses(8, 0, 0, 7).text == "8 to sample; 7 with gradient + 0 without to learn"
