"""What a sampler has made of a chunk: numbers that travel with its answer, and arrays that stay where it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from prdp.support.remote_rows import RemoteRows, RowArray
from prdp.types import Rollout, tensors_checksum

_NUMBERS = 2
"""Axes of stored arrays that travel: numbers of an image, and of its columns."""
PARTS = ("images", "stored", "conditions", "empty_conditions")
"""Fields of a rollout that may stay behind."""

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a sampler answers at once.

    Attributes:
        rollout: without the arrays that stay behind.
        specs: shape and dtype of these, by the keys of `staying`.
        node: Ray's id of the node that they lie on.
        digest: their checksum.
    """

    rollout: Rollout
    specs: Mapping[str, tuple[tuple[int, ...], str]]
    node: str
    digest: str


def split(rollout: Rollout, node: str) -> tuple[Summary, np.ndarray, Arrays, Arrays]:
    """The summary, and three objects that different processes need: images, what is stored, and conditions."""
    arrays = {key: np.asarray(value) for key, value in staying(rollout).items()}
    stripped = with_staying(rollout, {})
    specs = {key: (value.shape, value.dtype.str) for key, value in arrays.items()}
    summary = Summary(stripped, specs, node, tensors_checksum(arrays))
    stored = {key: value for key, value in arrays.items() if key.startswith("stored/")}
    conditions = {key: value for key, value in arrays.items() if key != "images" and key not in stored}
    return summary, arrays["images"], stored, conditions


def staying(rollout: Rollout) -> dict[str, RowArray]:
    """The arrays of a rollout that may stay elsewhere: 'images', and '<field>/<name>' of the others."""
    found: dict[str, RowArray] = {"images": rollout.images}
    for part in PARTS[1:]:
        for name, value in getattr(rollout, part).items():
            if part != "stored" or value.ndim > _NUMBERS:
                found[f"{part}/{name}"] = value
    return found


def with_staying(rollout: Rollout, arrays: Mapping[str, RowArray]) -> Rollout:
    """The rollout with these in the places of `staying`, and none where there is no other."""
    fields: dict[str, dict[str, RowArray]] = {
        part: {
            name: value
            for name, value in getattr(rollout, part).items()
            if part == "stored" and value.ndim <= _NUMBERS
        }
        for part in PARTS[1:]
    }
    for key, value in arrays.items():
        part, _, name = key.partition("/")
        if name:
            fields[part][name] = value
    images = arrays.get("images", np.empty((0, *rollout.images.shape[1:]), np.uint8))
    return dataclasses.replace(
        rollout,
        images=images,
        stored=fields["stored"],
        conditions=fields["conditions"],
        empty_conditions=fields["empty_conditions"],
    )


def remote_rows(rollout: Rollout) -> dict[str, RemoteRows]:
    """Of `staying`, what is elsewhere."""
    return {key: value for key, value in staying(rollout).items() if isinstance(value, RemoteRows)}
