"""Reward-weighted regression, best-of-N and Diffusion-DPO against formulas by hand and the published script's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden import GROUPS, SIZE, STEPS, batch, evaluate, numeric_tables


@pytest.mark.parametrize("normalise", ["batch", "group"])
def test_reward_weighted_regression(normalise: str) -> None:
    arrays, temperature = batch(), 0.4
    raw = [np.exp(reward / temperature) for reward in arrays["rewards"]]
    weights = []
    for image in range(GROUPS * SIZE):
        group = arrays["group_ids"] == arrays["group_ids"][image]
        total = sum(raw) if normalise == "batch" else GROUPS * sum(np.array(raw)[group])
        weights.append(raw[image] / total)
    error = -arrays["denoising"].mean(1)
    result = evaluate("reward_weighted_regression", arrays, temperature=temperature, normalise=normalise)
    assert result.loss == pytest.approx(sum(w * e for w, e in zip(weights, error, strict=True)), rel=1e-12)
    assert result.metrics["effective_images"] == pytest.approx(1 / sum(w**2 for w in weights))
    np.testing.assert_allclose(result.tables["denoising"], -np.repeat(np.array(weights)[:, None], STEPS, 1) / STEPS)


@pytest.mark.parametrize("top", [1, 3])
def test_best_of_n(top: int) -> None:
    arrays = batch()
    arrays["rewards"][:SIZE] = 0.5  # nothing to choose between
    losses, chosen = [], np.zeros(GROUPS * SIZE)
    for group in (1, 2):
        images = sorted(range(group * SIZE, (group + 1) * SIZE), key=lambda i: arrays["rewards"][i])[-top:]
        chosen[images] = 1
        losses.append(-np.mean([arrays["denoising"][image] for image in images]))
    result = evaluate("best_of_n", arrays, top=top)
    assert result.loss == pytest.approx(np.mean(losses), rel=1e-12)
    assert result.metrics == {"groups_tied": 1.0}
    np.testing.assert_allclose(
        result.tables["denoising"], -np.repeat(chosen[:, None], STEPS, 1) / (2 * top * STEPS), rtol=1e-12
    )


def test_best_of_n_leaves_out_prompts_whose_best_image_is_below_a_threshold_and_counts_them() -> None:
    arrays = batch()
    arrays["rewards"] = np.array([0.2, 0.2, 0.2, 0.2, 0.1, 0.5, 0.5, 0.3, 0.1, 0.2, 0.3, 0.49])
    kept = evaluate("best_of_n", arrays, least=0.5)
    assert kept.metrics == {"groups_tied": 1.0, "groups_below": 1.0}
    assert kept.loss == pytest.approx(-arrays["denoising"][5].mean(), rel=1e-12), "the first of two that are equal"
    assert np.flatnonzero(kept.tables["denoising"].any(1)).tolist() == [5]
    none = evaluate("best_of_n", arrays, least=0.6)
    assert (none.loss, none.metrics) == (0.0, {"groups_tied": 1.0, "groups_below": 2.0})
    assert not none.tables["denoising"].any()
    low = evaluate("best_of_n", arrays, least=-1e9)
    np.testing.assert_array_equal(low.tables["denoising"], evaluate("best_of_n", arrays).tables["denoising"])


def published_loss(arrays: dict[str, np.ndarray], pairs: list[tuple[int, int]], beta: float) -> torch.Tensor:
    """The loss of the authors' and diffusers' training scripts, for pairs (preferred, other) at every draw.

    There errors are positive, halves of the batch are preferred and other images, and a negative scale turns the sign.
    """
    model, reference = (torch.from_numpy(-arrays[name]) for name in ("denoising", "denoising_ref"))
    preferred, other = (list(images) for images in zip(*pairs, strict=True))
    model_difference = model[preferred] - model[other]
    reference_difference = reference[preferred] - reference[other]
    inside = -0.5 * beta * (model_difference - reference_difference)
    return -torch.nn.functional.logsigmoid(inside).mean()


@pytest.mark.parametrize("pairs", ["extremes", "all"])
def test_diffusion_dpo_equals_the_published_script(pairs: str) -> None:
    arrays, beta = batch(), 3.0
    rewards = arrays["rewards"]
    compared = []
    for group in range(GROUPS):
        images = sorted(range(group * SIZE, (group + 1) * SIZE), key=lambda i: rewards[i])
        every = [(a, b) for a in images for b in images if rewards[a] > rewards[b]]
        compared += every if pairs == "all" else [(images[-1], images[0])]
    result = evaluate("diffusion_dpo", arrays, beta=beta, pairs=pairs)
    assert result.loss == pytest.approx(published_loss(arrays, compared, beta).item(), rel=1e-12)
    numeric = numeric_tables("diffusion_dpo", arrays, beta=beta, pairs=pairs)["denoising"]
    np.testing.assert_allclose(result.tables["denoising"], numeric, atol=1e-8)
    gain = arrays["denoising"] - arrays["denoising_ref"]
    assert result.metrics["implicit_accuracy"] == pytest.approx(np.mean([gain[a] > gain[b] for a, b in compared]))


def test_diffusion_dpo_at_the_reference_and_far_from_it() -> None:
    arrays = batch()
    same = {**arrays, "denoising": arrays["denoising_ref"]}
    start = evaluate("diffusion_dpo", same, beta=4.0)
    assert start.loss == pytest.approx(np.log(2))
    # sigmoid(0) = 1/2, so the preferred image's coefficient is -beta / 4, shared among groups and draws.
    assert start.tables["denoising"].min() == pytest.approx(-1.0 / (GROUPS * STEPS))
    assert np.abs(start.tables["denoising"].sum()) < 1e-12
    far = evaluate("diffusion_dpo", arrays, beta=1e6)
    assert np.isfinite(far.loss)
    assert np.isfinite(far.tables["denoising"]).all()


def test_tied_groups_are_left_out() -> None:
    arrays = {**batch(), "rewards": np.ones(GROUPS * SIZE)}
    for name in ("best_of_n", "diffusion_dpo"):
        result = evaluate(name, arrays)
        assert (result.loss, result.metrics["groups_tied"]) == (0.0, GROUPS)
        assert not result.tables["denoising"].any()
