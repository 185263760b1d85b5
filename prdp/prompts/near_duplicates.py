"""Pairs of texts that share most of their letter sequences: MinHash and banding find candidates, sets decide.

A text is the set of its runs of SHINGLE bytes; similarity is the sets' Jaccard index. Candidates agree in one of BANDS
groups of minima (Broder 1997; banding as in Leskovec et al., Mining of Massive Datasets, ch. 3). Every candidate is
compared exactly, so that no pair is reported that is not one; about one pair in a hundred at the threshold is missed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

UInt64 = npt.NDArray[np.uint64]
Int64 = npt.NDArray[np.int64]

SHINGLE = 5
BANDS = 16
MAX_BUCKET = 1000
"""In a larger bucket each text is compared with this many before it, or templates of a few words cost hours."""
_TEXTS_PER_BLOCK = 20_000


class Bounded(NamedTuple):
    """Where the search was bounded by MAX_BUCKET: buckets, and texts in them; zeros when it was not."""

    buckets: int
    texts: int


def near_pairs(
    texts: Sequence[str], threshold: float, across: int | None = None
) -> tuple[list[tuple[int, int, float]], Bounded]:
    """Pairs (i, j, similarity), i < j, with similarity of at least the threshold, by j and then i.

    Args:
        texts: normalised, all different.
        threshold: above 0, at most 1.
        across: only pairs with i < across <= j.

    Raises:
        ValueError: a threshold outside of its range.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"near-duplicate threshold is {threshold}, expected above 0 and at most 1")
    if len(texts) < 2:
        return [], Bounded(0, 0)
    rows = rows_per_band(threshold)
    sets = [shingles(text) for text in texts]
    signatures = _signatures(sets, BANDS * rows)
    candidates, bounded = _candidates(signatures, rows, across)
    found = []
    for left, right in _promising(candidates, signatures, threshold):
        one, two = sets[left], sets[right]
        shared = len(np.intersect1d(one, two, assume_unique=True))
        similarity = shared / (len(one) + len(two) - shared)
        if similarity >= threshold:
            found.append((left, right, similarity))
    return found, bounded


def shingles(text: str) -> UInt64:
    """The distinct runs of SHINGLE bytes of ' text ', sorted; a run is its bytes as one number, so none collide."""
    padded = np.frombuffer(f" {text} ".encode().ljust(SHINGLE), np.uint8).astype(np.uint64)
    runs = np.zeros(len(padded) - SHINGLE + 1, np.uint64)
    for place in range(SHINGLE):
        runs = (runs << np.uint64(8)) | padded[place : place + len(runs)]
    return np.unique(runs)


def rows_per_band(threshold: float) -> int:
    """The most minima a band, at most 8, with which a pair at the threshold is found with 99% probability."""
    fitting = [rows for rows in range(1, 9) if 1 - (1 - threshold**rows) ** BANDS >= 0.99]
    return max(fitting, default=1)


def _signatures(sets: Sequence[UInt64], count: int) -> UInt64:
    """Uint64 [texts, count]: the smallest value over a text's runs of `count` hash functions of a fixed seed."""
    generator = np.random.default_rng(0)
    factors = generator.integers(0, 2**63, count, np.uint64) * np.uint64(2) + np.uint64(1)
    offsets = generator.integers(0, 2**63, count, np.uint64)
    result = np.empty((len(sets), count), np.uint64)
    for begin in range(0, len(sets), _TEXTS_PER_BLOCK):
        block = sets[begin : begin + _TEXTS_PER_BLOCK]
        mixed = _mixed(np.concatenate(block))
        starts = np.cumsum([0, *(len(runs) for runs in block[:-1])])
        for column in range(count):
            hashed = mixed * factors[column] + offsets[column]
            # The low bits of a product depend on few bits of its factors.
            hashed ^= hashed >> np.uint64(32)
            result[begin : begin + len(block), column] = np.minimum.reduceat(hashed, starts)
    return result


def _mixed(values: UInt64) -> UInt64:
    """The finaliser of SplitMix64 (Steele et al. 2014): neighbours become unrelated."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _candidates(signatures: UInt64, rows: int, across: int | None) -> tuple[Int64, Bounded]:
    """Int64 [pairs, 2], distinct, by second and then first: texts that share a band."""
    found: list[Int64] = []
    buckets = bounded_texts = 0
    for band in range(BANDS):
        keys = np.ascontiguousarray(signatures[:, band * rows : (band + 1) * rows]).view(f"V{8 * rows}").ravel()
        _, bucket = np.unique(keys, return_inverse=True)
        order = np.argsort(bucket, kind="stable")
        edges = np.flatnonzero(np.diff(bucket[order])) + 1
        for members in np.split(order, edges):
            if len(members) < 2:
                continue
            if across is not None and (members[0] >= across or members[-1] < across):
                continue
            if across is None and len(members) > MAX_BUCKET:
                buckets, bounded_texts = buckets + 1, bounded_texts + len(members)
            found.append(_pairs_of(members, across))
    if not found:
        return np.empty((0, 2), np.int64), Bounded(0, 0)
    pairs = np.concatenate(found)
    packed = np.unique(pairs[:, 1] * len(signatures) + pairs[:, 0])
    unpacked = np.stack([packed % len(signatures), packed // len(signatures)], axis=1)
    return unpacked, Bounded(buckets, bounded_texts)


def _pairs_of(members: Int64, across: int | None) -> Int64:
    if across is not None:
        left, right = members[members < across], members[members >= across]
        return np.stack([np.repeat(left, len(right)), np.tile(right, len(left))], axis=1)
    steps = range(1, min(len(members), MAX_BUCKET + 1))
    return np.concatenate([np.stack([members[:-step], members[step:]], axis=1) for step in steps])


def _promising(pairs: Int64, signatures: UInt64, threshold: float) -> Iterator[tuple[int, int]]:
    """Pairs whose share of equal minima, an estimate of their similarity, is not six deviations below the threshold."""
    count = signatures.shape[1]
    slack = 6 * np.sqrt(max(threshold * (1 - threshold), 0.01) / count)
    for begin in range(0, len(pairs), 65_536):
        block = pairs[begin : begin + 65_536]
        agreeing = (signatures[block[:, 0]] == signatures[block[:, 1]]).mean(axis=1)
        for left, right in block[agreeing >= threshold - slack]:
            yield int(left), int(right)
