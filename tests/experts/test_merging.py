"""Merging one layer, against numpy, peft's own functions on deltas, and identities."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from peft.utils.merge_utils import ties as peft_ties

from prdp.diffusion.adapter_files import AdaptedLayer
from prdp.experts.merge import normalised
from prdp.experts.merging import Part, concatenated, dare, delta, factorised, norm, ties, truncated
from prdp.support.errors import ConfigError

LINEAR, KERNEL = (6,), (3, 2, 2)


def random_layer(seed: int, rank: int, scale: float, inside: tuple[int, ...] = LINEAR, out: int = 5) -> AdaptedLayer:
    generator = torch.Generator().manual_seed(seed)
    up = torch.randn(out, rank, *(1 for _ in inside[1:]), generator=generator)
    return AdaptedLayer(torch.randn(rank, *inside, generator=generator), up, scale)


def matrix(layer: AdaptedLayer) -> np.ndarray:
    up, down = layer.up.double().numpy(), layer.down.double().numpy()
    return layer.scale * up.reshape(len(up), -1) @ down.reshape(len(down), -1)


def parts(inside: tuple[int, ...] = LINEAR) -> list[Part]:
    weights, layers = (0.5, 0.3, 0.2), ((2, 0.7), (3, 1.5), (1, 2.0))
    return [
        Part(weight, random_layer(number, rank, scale, inside), number)
        for number, (weight, (rank, scale)) in enumerate(zip(weights, layers, strict=True))
    ]


def mean(given: list[Part]) -> np.ndarray:
    return np.asarray(sum(part.weight * matrix(part.layer) for part in given))


@pytest.mark.parametrize("inside", [LINEAR, KERNEL])
def test_concatenated_factors_are_the_mean_of_deltas(inside: tuple[int, ...]) -> None:
    given = parts(inside)
    layer = concatenated(given)
    assert layer.rank == 6 and layer.alpha == 6
    np.testing.assert_allclose(matrix(layer), mean(given), rtol=0, atol=1e-6)
    np.testing.assert_allclose(matrix(concatenated(given[::-1])), mean(given), rtol=0, atol=1e-6)
    np.testing.assert_allclose(norm(layer), np.linalg.norm(mean(given)), rtol=1e-6)
    one = given[1].layer
    np.testing.assert_allclose(matrix(concatenated([Part(1.0, one)])), matrix(one), rtol=0, atol=1e-6)


def test_averaged_factors_are_another_thing() -> None:
    """What is not offered: mean of A and mean of B, of n experts that have nothing in common."""
    layers = [random_layer(number, 8, 1.0, (64,), 64) for number in range(5)]
    expected = np.mean([matrix(layer) for layer in layers], 0)
    apart = AdaptedLayer(
        torch.stack([layer.down for layer in layers]).mean(0), torch.stack([layer.up for layer in layers]).mean(0), 1.0
    )
    error = np.linalg.norm(matrix(apart) - expected) / np.linalg.norm(expected)
    assert error == pytest.approx(math.sqrt(1 - 1 / 5), abs=0.05)


@pytest.mark.parametrize("inside", [LINEAR, KERNEL])
@pytest.mark.parametrize("rank", [1, 3])
def test_truncation_is_numpys(inside: tuple[int, ...], rank: int) -> None:
    given = parts(inside)
    left, values, right = np.linalg.svd(mean(given), full_matrices=False)
    expected = (left[:, :rank] * values[:rank]) @ right[:rank]
    error = math.sqrt((values[rank:] ** 2).sum() / (values**2).sum())
    whole = torch.from_numpy(mean(given))
    for merged in (truncated(concatenated(given), rank), factorised(whole, given[0].layer, rank)):
        assert merged.layer.rank == rank and merged.layer.down.shape[1:] == inside
        np.testing.assert_allclose(matrix(merged.layer), expected, rtol=0, atol=2e-6)
        assert merged.error == pytest.approx(error, rel=1e-5)
        assert merged.size == pytest.approx(np.linalg.norm(mean(given)), rel=1e-5)


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (9, 7)])
def test_long_matrices_are_factorised_alike(shape: tuple[int, int]) -> None:
    whole = np.random.default_rng(0).normal(size=shape)
    left, values, right = np.linalg.svd(whole, full_matrices=False)
    like = AdaptedLayer(torch.ones(1, shape[1]), torch.ones(shape[0], 1), 1.0)
    merged = factorised(torch.from_numpy(whole), like, 3)
    np.testing.assert_allclose(matrix(merged.layer), (left[:, :3] * values[:3]) @ right[:3], rtol=0, atol=1e-5)
    assert merged.error == pytest.approx(math.sqrt((values[3:] ** 2).sum() / (values**2).sum()), rel=1e-6)


def test_a_rank_that_holds_all_loses_nothing() -> None:
    given = parts()
    for rank in (6, 40):
        merged = truncated(concatenated(given), rank)
        assert merged.error == 0 and merged.layer.rank == 5, "as many as a delta of five columns can have"
        np.testing.assert_allclose(matrix(merged.layer), mean(given), rtol=0, atol=1e-6)
    low = concatenated(given[:1])
    whole = factorised(delta(low), low, None)
    assert whole.layer.rank == 2 and whole.error < 1e-6
    np.testing.assert_allclose(matrix(whole.layer), mean(given[:1]), rtol=0, atol=1e-6)


def test_a_delta_of_zero_stays_one() -> None:
    layer = random_layer(0, 2, 1.0)
    zero = AdaptedLayer(layer.down, torch.zeros_like(layer.up), 1.0)
    for merged in (truncated(zero, 1), factorised(delta(zero), zero, None)):
        assert merged.error == 0 and merged.layer.rank == 1 and not matrix(merged.layer).any()


@pytest.mark.parametrize("density", [0.3, 0.5, 1.0])
def test_ties_of_equal_weights_is_pefts_on_deltas(density: float) -> None:
    given = [Part(1 / 3, part.layer) for part in parts()]
    expected = peft_ties([delta(part.layer) for part in given], torch.ones(3), density, "total")
    torch.testing.assert_close(ties(given, density), expected, rtol=0, atol=1e-6)


def test_ties_with_weights_by_hand() -> None:
    """Entry by entry: the sign by the weighted sum, the mean of those that have it by their weights."""
    rows = np.array([[4.0, -1.0, 2.0, 0.5], [-3.0, 3.0, 2.5, -0.1], [1.0, -2.0, -8.0, 0.2]])
    weights = (0.5, 0.3, 0.2)
    given = [
        Part(weight, AdaptedLayer(torch.tensor(row[None], dtype=torch.float32), torch.ones(1, 1), 1.0))
        for weight, row in zip(weights, rows, strict=True)
    ]
    # At half of four entries each row keeps its two largest: (4, 0, 2, 0), (-3, 3, 0, 0), (0, -2, -8, 0).
    by_hand = [4.0, 3.0, -8.0, 0.0]
    torch.testing.assert_close(ties(given, 0.5), torch.tensor([by_hand]))
    torch.testing.assert_close(ties(given, 1.0)[0, 0], torch.tensor((0.5 * 4 + 0.2 * 1) / 0.7))
    np.testing.assert_allclose(ties(given[:1], 1.0), rows[:1], rtol=1e-6)


def test_dare_keeps_a_share_and_the_mean() -> None:
    layer = random_layer(0, 4, 0.5, (200,), 100)
    whole = delta(layer)
    dropped = dare([Part(1.0, layer, seed=7)], 0.25)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], 4 * whole[kept])
    # 20,000 entries: three standard deviations of the share are 0.0092.
    assert abs(float(kept.float().mean()) - 0.25) < 0.0092
    assert torch.equal(dropped, dare([Part(1.0, layer, seed=7)], 0.25))
    assert not torch.equal(dropped, dare([Part(1.0, layer, seed=8)], 0.25))
    other = Part(0.4, random_layer(1, 2, 1.0, (200,), 100), seed=3)
    both = [Part(0.6, layer, seed=7), other]
    torch.testing.assert_close(dare(both, 0.25), 0.6 * dropped + dare([other], 0.25))
    torch.testing.assert_close(dare(both[::-1], 0.25), dare(both, 0.25))
    torch.testing.assert_close(dare(both, 1.0), 0.6 * whole + 0.4 * delta(other.layer))


def test_weights_sum_to_one_whatever_the_count_and_the_names() -> None:
    for count in (1, 2, 5, 12):
        names = [f"a-long-name-{number}" * number for number in range(count)]
        assert math.fsum(normalised([], names)) == pytest.approx(1.0, abs=1e-15)
        assert normalised([3.0] * count, names) == pytest.approx([1 / count] * count)
    assert normalised([1.0, 3.0], ["a", "b"]) == [0.25, 0.75]
    assert normalised([1e308, 1e308], ["a", "b"]) == [0.5, 0.5]
    with pytest.raises(ConfigError, match=r"that of a comes to 0 beside 1e\+308; leave the model out"):
        normalised([1e-320, 1e308], ["a", "b"])
    with pytest.raises(ConfigError, match=r"has 3 numbers: must be one for each of the 2 models \(a, b\), or none"):
        normalised([1.0, 2.0, 3.0], ["a", "b"])
