"""DiffusionNFT on a flow against the authors' code, and on other processes against clean latents by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from golden import GROUPS, SIZE, batch, evaluate
from stub_policy import SCHEDULER

from prdp.diffusion.process import Process
from prdp.diffusion.rectified_flow import RectifiedFlow
from prdp.diffusion.variance_preserving import VariancePreserving, alphas_cumprod
from prdp.evidence import ImplicitPolicies
from prdp.evidence.denoising import Noised
from prdp.objectives import Coefficients, build_objective

IMAGES, DRAWS, SHAPE = 6, 2, (2, 2, 2)
REWARDS = np.array([0.5, 1.25, -0.25, 0.1, 0.3, 0.9])
GROUP_IDS = np.repeat([0, 1], 3)


def noised(process: Process, clean: torch.Tensor, times: np.ndarray, noise: torch.Tensor) -> Noised:
    latents, target = process.noised(clean, times, noise)
    return Noised(process, clean, times, latents, target)


def on_a_flow(**knobs: Any) -> tuple[Coefficients, np.ndarray]:
    """Loss at outputs near the target, and its gradient by those of the policy, [IMAGES, DRAWS, *SHAPE]."""
    rng = np.random.default_rng(3)
    clean, noise = (torch.from_numpy(rng.normal(size=shape)) for shape in ((IMAGES, *SHAPE), (IMAGES, DRAWS, *SHAPE)))
    output, old, reference = (torch.from_numpy(rng.normal(size=(IMAGES, DRAWS, *SHAPE))) for _ in range(3))
    times = rng.uniform(0.05, 1, size=(IMAGES, DRAWS))
    old = noise - clean[:, None] + 0.5 * old
    output, reference = (old + 0.2 * output).requires_grad_(), old + 0.1 * reference
    cells = noised(RectifiedFlow({}), clean.repeat_interleave(DRAWS, 0), times.ravel(), noise.flatten(0, 1))
    others = {"old": old.flatten(0, 1), "reference": reference.flatten(0, 1)}
    objective = build_objective({"name": "nft", **knobs})
    assert isinstance(objective.evidence, ImplicitPolicies)
    channels = {
        name: objective.evidence.channel(name, output.flatten(0, 1), others, cells).view(IMAGES, DRAWS)
        for name in objective.channels
    }
    values = {name: channel.detach().numpy() for name, channel in channels.items()}
    result = objective.coefficients(values, {"rewards": REWARDS, "group_ids": GROUP_IDS})
    sum((torch.from_numpy(table) * channels[name]).sum() for name, table in result.tables.items()).backward()
    assert output.grad is not None
    return result, output.grad.numpy()


@pytest.mark.parametrize(
    ("step", "loss", "whole", "first", "last"),
    [
        (1.0, 0.5427015431622486, 0.9279245740846398, -0.0048434597743156615, 0.012060525140799888),
        (0.1, 5.260070577910671, 0.748301442293537, -0.0005296333145091148, 0.0068729320959113535),
    ],
)
def test_nft_equals_the_authors_code(step: float, loss: float, whole: float, first: float, last: float) -> None:
    """Numbers of their training script (NVlabs/DiffusionNFT, 2025) in float64, with their tracker of statistics."""
    result, gradient = on_a_flow(implicit_step=step, advantage_clip=1.5, kl=0.05)
    assert result.loss == pytest.approx(loss, rel=1e-9)
    assert np.abs(gradient).sum() == pytest.approx(whole, rel=1e-9)
    assert gradient[0, 0, 0, 0, 0] == pytest.approx(first, rel=1e-9)
    assert gradient[5, 1, 1, 0, 1] == pytest.approx(last, rel=1e-9)
    assert result.metrics == {"groups_tied": 0.0, "certain": pytest.approx(2 / 6)}


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_errors_are_those_of_clean_latents(prediction: str) -> None:
    """Whatever the network predicts, a mixture of outputs tells of the same mixture of clean latents."""
    rng = np.random.default_rng(0)
    clean, noise, near, nearer = (torch.from_numpy(rng.normal(size=(3, *SHAPE))) for _ in range(4))
    times = np.array([10.0, 500.0, 990.0])
    process = VariancePreserving({**SCHEDULER, "prediction_type": prediction})
    cells = noised(process, clean, times, noise)
    signal, spread = (
        torch.from_numpy(np.sqrt(part)).view(3, 1, 1, 1)
        for part in (alphas_cumprod(SCHEDULER)[times.astype(int)], 1 - alphas_cumprod(SCHEDULER)[times.astype(int)])
    )

    def predicting(wanted: torch.Tensor) -> torch.Tensor:
        """The output that tells of these clean latents."""
        epsilon = (cells.latents - signal * wanted) / spread
        return {"epsilon": epsilon, "v_prediction": signal * epsilon - spread * wanted, "sample": wanted}[prediction]

    policy, old = clean + 0.1 * near, clean + 0.1 * nearer
    evidence = ImplicitPolicies(implicit_step=0.3)
    for name, side in (("positive", 0.3), ("negative", -0.3)):
        error = old + side * (policy - old) - clean
        expected = -(error.square().mean((1, 2, 3)) / error.abs().mean((1, 2, 3))) / 0.3
        found = evidence.channel(name, predicting(policy), {"old": predicting(old)}, cells)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def test_a_sure_image_pulls_on_one_side_alone() -> None:
    arrays = batch() | {"rewards": np.tile([3.0, -3.0, 1.0, -1.0], GROUPS)}
    result = evaluate("nft", arrays, advantage_clip=0.5, std="none", kl=0.0)
    good, bad = (np.tile(sides, GROUPS) for sides in ([1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0]))
    cells = arrays["positive"].size
    np.testing.assert_allclose(result.tables["positive"], np.repeat(-0.5 * good[:, None] / cells, 5, 1))
    np.testing.assert_allclose(result.tables["negative"], np.repeat(-0.5 * bad[:, None] / cells, 5, 1))
    assert result.tables.keys() == {"positive", "negative"} and result.metrics["certain"] == 1.0


def test_what_an_advantage_is_worth_does_not_depend_on_the_clip() -> None:
    arrays = batch()
    sides = [evaluate("nft", arrays, advantage_clip=clip).tables for clip in (5.0, 50.0)]
    apart = [tables["positive"] - tables["negative"] for tables in sides]
    np.testing.assert_allclose(apart[0], apart[1], rtol=1e-9)
    tied = evaluate("nft", arrays | {"rewards": np.ones(GROUPS * SIZE)})
    np.testing.assert_allclose(tied.tables["positive"], tied.tables["negative"], rtol=1e-12)
    assert tied.metrics["groups_tied"] == GROUPS
