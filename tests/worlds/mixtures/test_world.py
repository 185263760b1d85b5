"""Prompts, their split, the coordinates in pictures and the reward that reads them."""

from __future__ import annotations

import numpy as np
import pytest

from prdp.worlds.mixtures import caption, count_prompts, is_held_out, parse, prompt_at
from prdp.worlds.mixtures.coordinates import LIMIT, SPACING, decode_points, encode_points
from prdp.worlds.mixtures.grammar import parse_all
from prdp.worlds.mixtures.prompts import GaussianMixturePrompts
from prdp.worlds.mixtures.reward import QuadraticOfPoint
from prdp.worlds.mixtures.world import features, reference_mixtures, rewards_of


def test_prompts_are_distinct_and_the_splits_disjoint_in_pairs() -> None:
    assert (count_prompts("train"), count_prompts("heldout")) == (900_000, 100_000)
    train = GaussianMixturePrompts("train", 3000)
    heldout = GaussianMixturePrompts("heldout", 3000)
    seen = {train[i][0] for i in range(3000)}
    unseen = {heldout[i][0] for i in range(3000)}
    assert len(seen) == len(unseen) == 3000
    pairs = [{parse(text)[:2] for text in texts} for texts in (seen, unseen)]
    assert not pairs[0] & pairs[1]
    for split, held_out in (("train", False), ("heldout", True)):
        assert all(is_held_out(parse(prompt_at(split, i))) == held_out for i in range(0, count_prompts(split), 997))
    # Each single value is seen in training.
    assert all({parse(text)[place] for text in seen} == set(range(10)) for place in range(6))
    assert train[5] == GaussianMixturePrompts("train", 3000)[5] != GaussianMixturePrompts("train", 3000, seed=1)[5]


@pytest.mark.parametrize("text", ["mixture a3 b7 c1 d9 e0", "mixture a3 b7 c1 d9 e0 f10", "a red circle", ""])
def test_other_prompts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="outside the world of mixtures"):
        parse(text)


def test_captions_are_read_back() -> None:
    assert caption((3, 7, 1, 9, 0, 4)) == "mixture a3 b7 c1 d9 e0 f4"
    assert parse("mixture a3 b7 c1 d9 e0 f4") == (3, 7, 1, 9, 0, 4)


@pytest.mark.parametrize("arguments", [{"split": "test"}, {"size": 0}, {"size": 900_001}, {"seed": -1}])
def test_prompt_sets_that_do_not_exist_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        GaussianMixturePrompts(**arguments)  # type: ignore[arg-type]


def test_the_world_is_smooth_sane_and_always_the_same() -> None:
    attributes = np.random.default_rng(0).integers(0, 10, (2000, 6))
    mixtures, rewards = reference_mixtures(attributes), rewards_of(attributes)
    np.testing.assert_allclose(np.exp(mixtures.log_weights).sum(1), 1.0)
    assert np.sqrt(np.linalg.eigvalsh(mixtures.covariances)).min() > 0.249
    assert np.linalg.eigvalsh(rewards.curvature).min() > -1e-12
    assert np.abs(mixtures.means).max() < 2.2
    neighbours = attributes.copy()
    neighbours[:, 2] = np.where(attributes[:, 2] > 0, attributes[:, 2] - 1, 1)
    assert np.abs(reference_mixtures(neighbours).means - mixtures.means).max() < 0.2
    np.testing.assert_allclose(features(np.array([[0, 9, 0, 9, 3, 6]])), [[-1, 1, -1, 1, -1 / 3, 1 / 3]])
    first = reference_mixtures(parse_all(["mixture a3 b7 c1 d9 e0 f4"]))
    np.testing.assert_allclose(first.means[0, 0], [2.0861199693843298, 0.29498449458950976], atol=1e-12)


def test_points_survive_their_picture() -> None:
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.uniform(-LIMIT, LIMIT - SPACING, (5000, 2)), np.zeros((1, 2))])
    images = encode_points(points)
    assert (images.shape, images.dtype) == ((5001, 1, 2, 3), np.uint8)
    assert np.abs(decode_points(images) - points).max() <= SPACING / 2
    np.testing.assert_array_equal(encode_points(decode_points(images)), images)
    np.testing.assert_array_equal(images[-1, 0], [[128, 0, 0], [128, 0, 0]])
    np.testing.assert_allclose(decode_points(encode_points(np.array([[-99.0, 99.0]]))), [[-LIMIT, LIMIT - SPACING]])


def test_bad_points_and_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        encode_points(np.array([[0.0, np.nan]]))
    with pytest.raises(ValueError, match=r"uint8 \[1, 64, 64, 3\]"):
        decode_points(np.zeros((1, 64, 64, 3), np.uint8))


def test_the_reward_reads_the_picture_and_knows_the_optimum() -> None:
    texts = ["mixture a3 b7 c1 d9 e0 f4", "mixture a0 b3 c5 d5 e5 f5"]
    points = np.array([[1.0, -0.5], [0.25, 2.0]])
    rewards, parts = QuadraticOfPoint(kl_weight=0.5).score(encode_points(points), texts, [{}, {}])
    quadratic = rewards_of(parse_all(texts))
    for row, (x, y) in enumerate(points):
        (xx, xy), (_, yy) = quadratic.curvature[row]
        expected = quadratic.linear[row] @ [x, y] - 0.5 * (xx * x * x + 2 * xy * x * y + yy * y * y)
        assert rewards[row] == pytest.approx(expected, abs=1e-5)
    assert (parts["optimum"] > parts["reference"]).all()
    assert set(QuadraticOfPoint().score(encode_points(points), texts, [{}, {}])[1]) == {"reference"}
    with pytest.raises(ValueError, match="kl_weight is -1"):
        QuadraticOfPoint(kl_weight=-1)
