"""Rows in pieces elsewhere are indexed as one array is, and no piece is fetched that is not asked for."""

from __future__ import annotations

import pickle
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from prdp.support.remote_rows import RemoteRows, RowsLostError, Stretch

WHOLE = np.random.default_rng(0).standard_normal((9, 4, 2)).astype(np.float32)
ENDS = (0, 2, 3, 7, 9)


class ListedPiece:
    """Rows in this process; notes who asks."""

    def __init__(self, rows: np.ndarray, asked: list[int]) -> None:
        self._rows, self._asked = rows, asked

    def fetch(self, name: str) -> np.ndarray:
        assert name == "latents"
        self._asked.append(len(self._rows))
        return self._rows


@pytest.fixture
def asked() -> list[int]:
    return []


@pytest.fixture
def rows(asked: list[int]) -> RemoteRows:
    pieces = [ListedPiece(WHOLE[first:end], asked) for first, end in pairwise(ENDS)]
    stretches = [Stretch(piece, 0, len(piece._rows)) for piece in pieces]
    return RemoteRows("latents", stretches, (4, 2), np.float32)


IMAGES, COLUMNS = np.array([8, 0, 3, 3, 2, 6]), np.array([0, 3, 1, 2, 2, 0])


@pytest.mark.parametrize(
    "index",
    [
        IMAGES,
        IMAGES - 9,
        IMAGES[:0],
        [1, 7],
        (IMAGES, COLUMNS),
        (IMAGES, COLUMNS, COLUMNS % 2),
        (IMAGES, slice(None), COLUMNS % 2),
        (IMAGES, 2),
        (IMAGES[:0], COLUMNS[:0]),
        IMAGES.reshape(2, 3),
        (IMAGES[:, None], COLUMNS[None, :]),
        4,
        (-1, 2),
        slice(1, 8),
        slice(5),
        slice(4, 4),
        slice(None, None, -2),
        (slice(2, 5), 1),
        (slice(2, 5), IMAGES % 4, slice(None)),
        (slice(2, 5), IMAGES % 4, IMAGES % 2),
        np.arange(9) % 2 == 0,
        ...,
    ],
    ids=str,
)
def test_indices_give_what_numpy_gives(rows: RemoteRows, index: Any) -> None:
    found = rows[index]
    np.testing.assert_array_equal(found, WHOLE[index], strict=True)
    assert not np.shares_memory(found, WHOLE)


def test_only_the_pieces_of_the_rows_asked_for_are_fetched(rows: RemoteRows, asked: list[int]) -> None:
    rows[np.array([3, 6, 5])]
    assert asked == [4]
    part = rows.part(2, 5)
    assert (len(part), part.shape, part.ndim, part.nbytes) == (3, (3, 4, 2), 3, 3 * 32)
    assert asked == [4]
    np.testing.assert_array_equal(part, WHOLE[2:5])
    assert asked == [4, 1, 4]
    np.testing.assert_array_equal(part.part(1, 3)[np.array([1, 0])], WHOLE[[4, 3]])


def test_parts_joined_are_the_whole(rows: RemoteRows) -> None:
    again = RemoteRows.joined([rows.part(0, 4), rows.part(4, 4), rows.part(4, 9)])
    np.testing.assert_array_equal(again, WHOLE, strict=True)
    np.testing.assert_array_equal(np.array(list(again)), WHOLE)
    assert np.asarray(rows, np.float64).dtype == np.float64
    assert len(rows.part(3, 3)) == 0


@pytest.mark.parametrize("index", [np.array([0, 9]), np.array([-10]), 9])
def test_rows_that_are_not_there_are_named(rows: RemoteRows, index: Any) -> None:
    with pytest.raises(IndexError, match=r"row -?\d+ of 'latents', which has 9"):
        rows[index]


def test_a_loss_travels_with_its_place() -> None:
    error = pickle.loads(pickle.dumps(RowsLostError("they are gone", "epoch 1, prompts 0 to 1")))
    assert (str(error), error.where) == ("they are gone", "epoch 1, prompts 0 to 1")
