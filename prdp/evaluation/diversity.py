"""How different a prompt's images are from each other, and from the base model's: the alarm for collapse."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from prdp.types import Float32, Float64, UInt8

SIDE = 32
"""Longest side of the pictures that `pixel_features` compares."""


def pixel_features(images: UInt8) -> Float32:
    """Low-resolution pixels as vectors whose Euclidean distance is the root mean square difference of the pixels.

    Args:
        images: uint8 [n, H, W, 3].

    Returns:
        float32 [n, D]; distances lie in [0, 1], 1 being black against white.
    """
    height, width = images.shape[1:3]
    if max(height, width) > SIDE:
        images = _shrunk(images, height, width)
    flat = images.reshape(len(images), -1).astype(np.float32)
    return flat / np.float32(255.0 * np.sqrt(flat.shape[1]))


def mean_pairwise_distance(features: npt.NDArray[np.floating], groups: npt.ArrayLike) -> tuple[Float64, npt.NDArray]:
    """Mean Euclidean distance over all pairs of a group's images.

    Args:
        features: float [n, D].
        groups: label of each image's group, [n].

    Returns:
        (float64 [g], labels [g]), by ascending label; NaN for a group of one image.
    """
    labels, index = np.unique(np.asarray(groups), return_inverse=True)
    result = np.full(len(labels), np.nan)
    for group in range(len(labels)):
        members = features[index == group].astype(np.float64)
        count = len(members)
        if count > 1:
            # Centred, since distances come from differences of squares here and nearly equal images must stay exact.
            members = members - members.mean(axis=0)
            squares = np.einsum("nd,nd->n", members, members)
            distances = np.sqrt(np.maximum(squares[:, None] + squares[None, :] - 2.0 * members @ members.T, 0.0))
            result[group] = distances[np.triu_indices(count, 1)].mean()
    return result, labels


def paired_distance(first: npt.NDArray[np.floating], second: npt.NDArray[np.floating]) -> Float64:
    """Float64 [n]: Euclidean distance of each image's features [n, D] from those of its partner.

    Raises:
        ValueError: shapes that differ.
    """
    if first.shape != second.shape:
        raise ValueError(f"features have shapes {first.shape} and {second.shape}, expected pairs")
    return np.asarray(np.linalg.norm(first.astype(np.float64) - second.astype(np.float64), axis=1), np.float64)


def group_diversity(images: UInt8, images_per_prompt: int) -> Float64:
    """Mean pairwise distance in `pixel_features` of the images of each image's prompt; NaN with one image a prompt.

    Args:
        images: uint8 [n, H, W, 3], prompt-major.
        images_per_prompt: size of each prompt's group.

    Returns:
        float64 [n], equal within a group.
    """
    groups = np.arange(len(images)) // images_per_prompt
    values, _ = mean_pairwise_distance(pixel_features(images), groups)
    return values[groups]


def _shrunk(images: UInt8, height: int, width: int) -> UInt8:
    from PIL import Image

    scale = SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.stack([np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX)) for image in images])
