"""DDPO, REINFORCE and GRPO against their papers' formulas, image by image and step by step."""

from __future__ import annotations

from collections import defaultdict, deque

import numpy as np
import pytest
from golden import GROUPS, SIZE, STEPS, batch, evaluate, numeric_tables

from prdp.learners.history import RewardHistory


def own_advantages(arrays: dict[str, np.ndarray], min_count: int, clip: float) -> list[float]:
    """Rewards standardised by what history knows of their prompt, or else by the batch."""
    advantages = []
    for reward, known in zip(arrays["rewards"], arrays["history"], strict=True):
        known = known[~np.isnan(known)]
        of = known if len(known) >= min_count else arrays["rewards"]
        advantages.append(max(-clip, min(clip, (reward - np.mean(of)) / (np.std(of) + 1e-6))))
    return advantages


def clipped(arrays: dict[str, np.ndarray], advantages: list[float], clip_range: float) -> tuple[float, float]:
    """Mean over images and steps of max(-A rho, -A clip(rho)), and the share of ratios beyond the clip range."""
    terms, beyond = [], 0
    for image, advantage in enumerate(advantages):
        for step in range(STEPS):
            rho = np.exp(arrays["log_importance"][image, step])
            bounded = min(max(rho, 1 - clip_range), 1 + clip_range)
            terms.append(max(-advantage * rho, -advantage * bounded))
            beyond += abs(rho - 1) > clip_range
    return float(np.mean(terms)), beyond / len(terms)


def test_ddpo_by_hand() -> None:
    # Two images, one step. Rewards 3 and 1 have mean 2 and deviation 1, so advantages 1 and -1. Ratios 1.3 and 0.5,
    # clipped to [0.8, 1.2]: max(-1.3, -1.2) = -1.2 and max(0.5, 0.8) = 0.8. Both are clipped: no gradient.
    arrays = {
        "log_importance": np.log([[1.3], [0.5]]),
        "rewards": np.array([3.0, 1.0]),
        "history": np.full((2, 0), np.nan),
    }
    result = evaluate("ddpo", arrays, clip_range=0.2, buffer_size=0)
    assert result.loss == pytest.approx((-1.2 + 0.8) / 2, rel=1e-5)
    np.testing.assert_allclose(result.tables["log_importance"], [[0.0], [0.0]])
    assert result.metrics == {"clipfrac": 1.0, "batch_normalised": 1.0}
    # Rewards the other way round: max(1.3, 1.2) and max(-0.5, -0.8): the clip leaves what takes the policy back alone.
    result = evaluate("ddpo", {**arrays, "rewards": np.array([1.0, 3.0])}, clip_range=0.2, buffer_size=0)
    assert result.loss == pytest.approx((1.3 - 0.5) / 2, rel=1e-5)
    np.testing.assert_allclose(result.tables["log_importance"], [[0.65], [-0.25]], rtol=1e-5)


@pytest.mark.parametrize("advantage_clip", [10.0, 0.7])
def test_ddpo(advantage_clip: float) -> None:
    arrays = batch()
    result = evaluate("ddpo", arrays, clip_range=0.03, min_count=4, advantage_clip=advantage_clip)
    loss, clipfrac = clipped(arrays, own_advantages(arrays, 4, advantage_clip), 0.03)
    assert result.loss == pytest.approx(loss, rel=1e-12)
    assert result.metrics == pytest.approx({"clipfrac": clipfrac, "batch_normalised": 2 / 3})
    assert 0.2 < clipfrac < 0.8
    numeric = numeric_tables("ddpo", arrays, clip_range=0.03, min_count=4, advantage_clip=advantage_clip)
    np.testing.assert_allclose(result.tables["log_importance"], numeric["log_importance"], atol=1e-8)


@pytest.mark.parametrize("name", ["ddpo", "reinforce"])
def test_a_history_shorter_than_the_buffer_counts_whole(name: str) -> None:
    # Three rewards known of the one prompt, 0, 2 and 4: mean 2, deviation sqrt(8 / 3). With a buffer of 2: 3 and 1.
    arrays = {
        "log_importance": np.zeros((1, 1)),
        "rewards": np.array([4.0]),
        "history": np.array([[0.0, 2.0, 4.0]]),
    }
    for length, advantage in ((5, 2.0 / np.sqrt(8 / 3)), (3, 2.0 / np.sqrt(8 / 3)), (2, 1.0)):
        result = evaluate(name, arrays, buffer_size=length, min_count=2)
        np.testing.assert_allclose(result.tables["log_importance"], [[-advantage]], rtol=1e-5)


def test_ddpo_on_policy_is_reinforce() -> None:
    arrays = batch(spread=0.0)
    ddpo, reinforce = (evaluate(name, arrays, min_count=4) for name in ("ddpo", "reinforce"))
    np.testing.assert_allclose(ddpo.tables["log_importance"], reinforce.tables["log_importance"], rtol=1e-12)
    expected = -np.repeat(np.array(own_advantages(arrays, 4, 10.0))[:, None], STEPS, 1) / arrays["log_importance"].size
    np.testing.assert_allclose(reinforce.tables["log_importance"], expected, rtol=1e-12)
    assert reinforce.loss == pytest.approx((expected * arrays["log_importance"]).sum(), rel=1e-12)


def test_running_statistics_equal_the_authors_bookkeeping() -> None:
    """A deque per prompt, as in the authors' tracker, over epochs in which prompts come back, some twice."""
    rng, length, least = np.random.default_rng(0), 6, 4
    buffers: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=length))
    history = RewardHistory(length)
    shares = []
    for epoch in range(6):
        prompts = [str(text) for text in rng.choice(["a", "b", "c", "d", "e"], size=4).repeat(2)]
        rewards = rng.normal(size=8)
        arrays = {"log_importance": np.ones((8, 1)), "rewards": rewards}
        arrays["history"] = history.including(epoch, prompts, rewards)
        result = evaluate("reinforce", arrays, buffer_size=length, min_count=least)
        history.remember(epoch, prompts, rewards)
        for prompt, reward in zip(prompts, rewards, strict=True):
            buffers[prompt].append(reward)
        expected = []
        for prompt, reward in zip(prompts, rewards, strict=True):
            of = buffers[prompt] if len(buffers[prompt]) >= least else rewards
            expected.append((reward - np.mean(of)) / (np.std(of) + 1e-6))
        np.testing.assert_allclose(-8 * result.tables["log_importance"][:, 0], expected, rtol=1e-12)
        shares.append(result.metrics["batch_normalised"])
    assert shares[0] > shares[-1] == 0.0


@pytest.mark.parametrize("std", ["group", "batch", "none"])
def test_grpo(std: str) -> None:
    arrays = batch()
    arrays["rewards"][:SIZE] = 0.25
    advantages = []
    for group in range(GROUPS):
        rewards = arrays["rewards"][group * SIZE : (group + 1) * SIZE]
        spread = {"group": np.std(rewards), "batch": np.std(arrays["rewards"]), "none": 1 - 1e-4}[std]
        advantages += [max(-1.1, min(1.1, (r - np.mean(rewards)) / (spread + 1e-4))) for r in rewards]
    loss, clipfrac = clipped(arrays, advantages, 0.03)
    knobs = {"clip_range": 0.03, "advantage_clip": 1.1, "beta": 0.4, "std": std}
    result = evaluate("grpo", arrays, **knobs)
    assert result.loss == pytest.approx(loss + 0.4 * np.mean(arrays["kl_ref"]), rel=1e-12)
    assert result.metrics == pytest.approx({"clipfrac": clipfrac, "groups_tied": 1.0})
    np.testing.assert_allclose(result.tables["kl_ref"], np.full((12, STEPS), 0.4 / 60))
    numeric = numeric_tables("grpo", arrays, **knobs)["log_importance"]
    np.testing.assert_allclose(result.tables["log_importance"], numeric, atol=1e-8)
    assert not result.tables["log_importance"][:SIZE].any()


def test_the_default_beta_of_grpo_is_the_authors_at_ten_steps() -> None:
    """Their KL divides by the diffusion coefficient s where the step's sigma is s sqrt(D), D the step's size."""
    size, coefficient, distance = 0.1, 0.7, np.random.default_rng(0).normal(size=(12, STEPS))
    theirs = distance**2 / (2 * coefficient**2)
    exact = distance**2 / (2 * (coefficient * np.sqrt(size)) ** 2)
    arrays = batch() | {"kl_ref": exact}
    with_kl, without = evaluate("grpo", arrays), evaluate("grpo", arrays, beta=0.0)
    assert with_kl.loss - without.loss == pytest.approx(0.04 * theirs.mean(), rel=1e-9)


def test_without_clip_the_ratio_is_free() -> None:
    arrays = batch()
    result = evaluate("grpo", arrays, clip_range=None, beta=0.0)
    assert result.metrics["clipfrac"] == 0.0
    assert np.count_nonzero(result.tables["log_importance"]) == 60
