"""Chunks in the object store, by reference: learners fetch their rows, and chunks that are lost are made again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import ray

from prdp.cluster.actor_pool import LostError, fetch_result
from prdp.cluster.base import Identity, describe_chunk
from prdp.cluster.chunk_products import Summary, remote_rows, with_staying
from prdp.support.remote_rows import Piece, RemoteRows, RowsLostError, Stretch
from prdp.types import PromptBatch, Rollout


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """What the chunks of a rollout follow from.

    Attributes:
        prompts: all.
        weights: as their transport wants them.
        published: version and checksum of these.
        trajectory: whether samplers keep something to learn from.
    """

    prompts: PromptBatch
    weights: Any
    published: Identity | None
    images_per_prompt: int
    seed: int
    trajectory: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Origin:
    """Where a chunk lies, and how it is made again; known to the driver alone.

    Attributes:
        prompts: of the chunk.
        node: Ray's id of the node that has it.
        digest: checksum of its arrays.
    """

    request: Request
    prompts: PromptBatch
    node: str
    digest: str


class StoredPiece:
    """A `Piece` in the object store.

    Args:
        reference: of an array, or of arrays by name.
        where: the chunk that it belongs to.
        origin: does not travel.
    """

    def __init__(self, reference: Any, where: str, origin: Origin | None = None) -> None:
        self.reference, self.where, self.origin = reference, where, origin

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredPiece, (self.reference, self.where)

    def fetch(self, name: str) -> np.ndarray:
        """See `Piece.fetch`."""
        try:
            value = fetch_result(self.reference)
        except LostError as error:
            kind = str(error).partition(":")[0]  # Ray goes on for long
            raise RowsLostError(f"'{name}' of {self.where} is lost: {kind}", self.where) from error
        array: np.ndarray = value if isinstance(value, np.ndarray) else value[name]
        return array


def referring(summary: Summary, references: Sequence[Any], request: Request) -> Rollout:
    """A sampled chunk whose arrays are elsewhere.

    Args:
        references: of the images, what is stored, and the conditions.
    """
    chunk = summary.rollout.prompts
    origin = Origin(request, chunk, summary.node, summary.digest)
    images, stored, conditions = (StoredPiece(one, describe_chunk(chunk), origin) for one in references)
    rows = {}
    for key, (shape, dtype) in summary.specs.items():
        piece = images if key == "images" else stored if key.startswith("stored/") else conditions
        rows[key] = RemoteRows(key, [Stretch(piece, 0, shape[0])], shape[1:], dtype)
    return with_staying(summary.rollout, rows)


def image_reference(rollout: Rollout) -> Any:
    """What an actor is given for the images of one chunk: their reference, or themselves where they are here."""
    if isinstance(rollout.images, RemoteRows) and len(rollout.images.stretches) == 1:
        return _stored(rollout.images.stretches[0].piece).reference
    return rollout.images


def is_lost(rollout: Rollout) -> bool:
    """Whether any of a rollout's arrays were on a node that is gone."""
    return bool(lost_chunks(rollout))


def lost_chunks(rollout: Rollout, where: str = "") -> list[Origin]:
    """The chunk that is named, and all whose node is gone, in order."""
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    found = {}
    for rows in remote_rows(rollout).values():
        for stretch in rows.stretches:
            piece = _stored(stretch.piece)
            assert piece.origin is not None, "the driver looks after chunks"
            if piece.where == where or piece.origin.node not in alive:
                found[piece.where] = piece.origin
    return sorted(found.values(), key=lambda origin: origin.prompts.offset)


def replaced(rollout: Rollout, chunks: Mapping[str, Rollout]) -> Rollout:
    """The rollout with other references in the place of those to chunks that were made again, by `describe_chunk`."""
    new = {where: remote_rows(chunk) for where, chunk in chunks.items()}

    def moved(key: str, rows: RemoteRows) -> RemoteRows:
        def to(piece: Piece) -> Piece:
            where = _stored(piece).where
            return new[where][key].stretches[0].piece if where in new else piece

        return rows.moved(to)

    rows = remote_rows(rollout)
    return with_staying(rollout, {key: moved(key, value) for key, value in rows.items()})


def digest_of(chunk: Rollout) -> str:
    """Checksum of the arrays of one chunk."""
    origin = _stored(next(iter(remote_rows(chunk).values())).stretches[0].piece).origin
    return "" if origin is None else origin.digest


def _stored(piece: Piece) -> StoredPiece:
    assert isinstance(piece, StoredPiece), "rows of another transport"
    return piece
