"""Passes of the network that an update takes: none that is not needed, and the same gradient without."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from stub_learners import ON_DENOISING, TRANSITIONS, build, moved
from stub_policy import StubPolicy, stub_rollout

from prdp.evidence import Denoising
from prdp.types import Rollout


def passes(
    policy: StubPolicy,
    name: str,
    knobs: dict[str, Any],
    rollout: Rollout,
    monkeypatch: pytest.MonkeyPatch,
    still: bool = False,
    **learner_settings: Any,
) -> tuple[int, int]:
    """Cells that go through the network for one update, and how many of those with gradient.

    Args:
        still: whether the old policy has the weights that learn.
    """
    counts = [0, 0]
    learner, output = build(policy, name, knobs, **learner_settings), policy.output
    if "old" in learner.objective.others and not still:
        moved(policy)

    def counting(latents: torch.Tensor, *arguments: Any) -> torch.Tensor:
        counts[0] += len(latents)
        counts[1] += len(latents) * torch.is_grad_enabled()
        return output(latents, *arguments)

    monkeypatch.setattr(policy, "output", counting)
    learner.update(rollout)
    return counts[0], counts[1]


@pytest.mark.parametrize(
    ("name", "knobs", "version", "expected"),
    [
        ("prdp", {}, 0, (48, 48)),  # 12 images, 4 steps: the sampler has stored the log-ratios
        ("prdp", {}, 1, (96, 48)),
        ("grpo", {}, 0, (48, 48)),  # the KL is not stored, but its coefficient is known
        ("grpo", {}, 1, (96, 48)),
        ("grpo_guard", {}, 0, (48, 48)),
        ("flow_dppo", {}, 0, (48, 48)),
        ("flow_dppo", {}, 1, (96, 48)),
        ("reinforce", {}, 1, (48, 48)),
        ("reward_weighted_regression", {}, 0, (36, 36)),  # 12 images, 3 draws
        ("best_of_n", {}, 0, (18, 18)),  # the best 2 of 4 images
        ("denoising", {}, 0, (36, 36)),
        ("diffusion_dpo", {}, 0, (54, 18)),  # the best and the worst: reference, policy, policy with gradient
        ("prdp", ON_DENOISING, 0, (108, 36)),  # reference, policy, policy with gradient
        ("ddpo", ON_DENOISING, 1, (36, 36)),  # its ratios are 1 at the first update, whoever has sampled
        ("rebel", ON_DENOISING, 0, (36, 36)),
        ("reinforce", ON_DENOISING, 0, (36, 36)),
        ("grpo", ON_DENOISING, 0, (72, 36)),  # the reference's output for the KL
        ("grpo", {**ON_DENOISING, "beta": 0.0}, 0, (36, 36)),
        ("crd", {}, 0, (144, 36)),  # the old policy, the policy, the reference, the policy with gradient
        ("nft", {}, 0, (108, 36)),  # the old policy's output once, the reference's, and the policy's with gradient
        ("nft", {"kl": 0.0}, 0, (72, 36)),
        ("fdfo", {}, 0, (48, 48)),  # scores of the policy that sampled are 0
        ("fdfo", {}, 1, (96, 48)),
        ("fdfo", {"kl": 1.0}, 0, (96, 48)),
        ("awm", {}, 0, (108, 36)),  # outputs of the reference and of the old policy
        ("awm", {"beta": 0.0, "beta_old": 0.0}, 0, (36, 36)),
        ("dgpo", {}, 0, (144, 36)),  # old policy, reference, whose outputs are kept, policy, policy with gradient
        ("dgpo", {"frozen_reference": False, "kl": 0.0, "clip_range": None}, 0, (108, 36)),
        ("dgpo", {"frozen_reference": False, "kl": 0.0}, 0, (92, 20)),  # 16 are beyond the trust region
    ],
)
def test_no_pass_that_is_not_needed(
    name: str, knobs: dict[str, Any], version: int, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = StubPolicy()
    rollout = dataclasses.replace(stub_rollout(policy, TRANSITIONS), weights_version=version)
    assert passes(policy, name, knobs, rollout, monkeypatch) == expected


@pytest.mark.parametrize(
    ("name", "knobs", "version", "microbatch", "expected"),
    [
        ("prdp", {}, 1, 15, (96, 48)),  # 4 images, 4 steps
        ("prdp", {}, 1, 16, (48, 48)),
        ("prdp", ON_DENOISING, 0, 11, (108, 36)),
        ("prdp", ON_DENOISING, 0, 12, (72, 36)),  # reference, policy with gradient
        ("prdp", {**ON_DENOISING, "kl": 1.0}, 0, 11, (108, 36)),  # reference, policy, policy with gradient
        ("prdp", {**ON_DENOISING, "kl": 1.0}, 0, 12, (72, 36)),  # the reference's output tells its error, too
        ("diffusion_dpo", {}, 0, 12, (36, 18)),
        ("dgpo", {}, 0, 12, (108, 36)),  # old policy, reference, policy with gradient
        ("dgpo", {"kl_guidance": 4.5}, 0, 12, (144, 36)),  # the reference once more, with guidance, for the KL
    ],
)
def test_coefficients_of_groups_that_fit_into_a_microbatch_take_no_pass_of_their_own(
    name: str,
    knobs: dict[str, Any],
    version: int,
    microbatch: int,
    expected: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = StubPolicy()
    rollout = dataclasses.replace(stub_rollout(policy, TRANSITIONS), weights_version=version)
    assert passes(policy, name, knobs, rollout, monkeypatch, microbatch=microbatch) == expected


@pytest.mark.parametrize(
    ("name", "knobs", "expected"),
    [
        ("crd", {}, (72, 36)),  # the reference, the policy with gradient
        ("nft", {}, (72, 36)),
        ("nft", {"kl": 0.0}, (36, 36)),
        ("awm", {}, (72, 36)),
        ("dgpo", {}, (108, 36)),  # reference, policy, policy with gradient
        ("prdp", {**ON_DENOISING, "old_is_reference": True}, (36, 36)),
    ],
)
def test_an_old_policy_with_the_weights_that_learn_takes_no_pass(
    name: str, knobs: dict[str, Any], expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = StubPolicy()
    rollout = stub_rollout(policy, TRANSITIONS)
    assert passes(policy, name, knobs, rollout, monkeypatch, still=True) == expected


@pytest.mark.parametrize("name", ["crd", "nft", "awm", "dgpo"])
def test_the_gradient_is_the_same_without_the_passes_of_an_old_policy_that_has_not_moved(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for still in (True, False):
        policy = StubPolicy()
        if not still:
            monkeypatch.setattr("prdp.learners.torch_engine.TorchEngine.unmoved", lambda self, of: False)
        build(policy, name).update(stub_rollout(policy, TRANSITIONS))
        found.append([value.grad for value in policy.weights.parameters.values()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize(("name", "most", "cells"), [("prdp", 36, 0), ("dgpo", 36, 0), ("dgpo", 20, 36 - 20)])
def test_outputs_that_two_passes_take_are_computed_once_as_far_as_they_fit_and_no_bit_changes(
    name: str, most: int, cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    knobs, bytes_of_a_cell = {**ON_DENOISING, "kl": 1.0} if name == "prdp" else {}, 8 * 8
    found, counts = [], []
    for limit in (0.0, most * bytes_of_a_cell / 2**30):
        policy = moved(StubPolicy())
        learner, rollout = build(policy, name, knobs, microbatch=5, kept_outputs_gib=limit), stub_rollout(
            policy, TRANSITIONS
        )
        moved(policy)
        output, count = policy.output, [0]

        def counting(latents: torch.Tensor, *arguments: Any, output: Any = output, count: Any = count) -> torch.Tensor:
            count[0] += len(latents)
            return output(latents, *arguments)  # type: ignore[no-any-return]

        policy.output = counting  # type: ignore[method-assign]
        for _ in range(2):  # draws are those of an update
            told = learner.update(dataclasses.replace(rollout, weights_version=1))
        found.append((told["kl_ref"], told["loss"], *(value.grad for value in policy.weights.parameters.values())))
        counts.append(count[0])
        assert not learner.engine._outputs, "nothing is held between updates"  # type: ignore[attr-defined]
    assert counts[0] - counts[1] == 2 * (36 - cells)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["prdp", "dgpo"])
def test_the_gradient_is_the_same_where_the_reference_s_error_is_found_beside_its_output(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    knobs = {**ON_DENOISING, "kl": 1.0} if name == "prdp" else {}
    found = []
    for beside in (Denoising.beside, {}):
        monkeypatch.setattr(Denoising, "beside", beside)
        policy = StubPolicy()
        learner, rollout = build(policy, name, knobs, microbatch=12), stub_rollout(policy, TRANSITIONS)
        moved(policy)
        metrics = learner.update(dataclasses.replace(rollout, weights_version=1))
        found.append([value.grad for value in policy.weights.parameters.values()])
        assert metrics["kl_ref"] > 0
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0)
