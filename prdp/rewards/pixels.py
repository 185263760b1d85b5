"""From uint8 images to what vision towers take, as their authors' packages do it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from prdp.types import UInt8

if TYPE_CHECKING:
    import torch

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def check_batch(images: Any, prompts: Sequence[str], metadata: Sequence[Any]) -> None:
    """Raise ValueError unless there are uint8 images [B, H, W, 3], B at least 1, and as many prompts and metadata."""
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        got = f"{images.dtype} {list(images.shape)}" if isinstance(images, np.ndarray) else type(images).__name__
        raise ValueError(f"images is {got}, expected a uint8 array [B, H, W, 3]")
    if not len(images) == len(prompts) == len(metadata) or len(images) == 0:
        raise ValueError(
            f"got {len(images)} images, {len(prompts)} prompts and {len(metadata)} metadata, "
            "expected equal numbers above 0"
        )


def short_side_pixels(
    images: UInt8,
    size: int,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
    crop_rounds: bool = True,
) -> torch.Tensor:
    """Shorter side to `size` by Pillow's bicubic filter, centre crop, standardise: as CLIP does.

    Args:
        images: uint8 [B, H, W, 3].
        size: side of the result in pixels.
        mean: per channel, of values in [0, 1].
        std: per channel.
        crop_rounds: where the excess is odd, the crop's corner is rounded to even, as torchvision does it (openai/CLIP,
            open_clip, ImageReward); otherwise down, as transformers does it. Square images are not cropped.

    Returns:
        float32 [B, 3, size, size].
    """
    from PIL import Image

    height, width = images.shape[1:3]
    short = min(height, width)
    # The longer side is cut, not rounded, in both libraries.
    new_width, new_height = int(size * width / short), int(size * height / short)
    left, top = ((extent - size) / 2 for extent in (new_width, new_height))
    column, row = (round(left), round(top)) if crop_rounds else (int(left), int(top))
    resized = np.stack(
        [
            np.asarray(Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BICUBIC))
            for image in images
        ]
    )
    cropped = resized[:, row : row + size, column : column + size]
    return _normalised(_unit_interval(cropped), mean, std)


def long_side_pixels(
    images: UInt8, size: int, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD
) -> torch.Tensor:
    """Longer side to `size` by torch's antialiased bicubic filter, zeros around, standardise: as HPSv2 does.

    The filter works on floats and its overshoot beyond [0, 1] is kept, as torchvision does it on tensors.

    Args:
        images: uint8 [B, H, W, 3].
        size: side of the result in pixels.
        mean: per channel, of values in [0, 1].
        std: per channel.

    Returns:
        float32 [B, 3, size, size].
    """
    import torch

    values = _unit_interval(images)
    height, width = images.shape[1:3]
    scale = size / max(height, width)
    if scale != 1:
        new_height, new_width = round(height * scale), round(width * scale)
        values = torch.nn.functional.interpolate(
            values, size=(new_height, new_width), mode="bicubic", align_corners=False, antialias=True
        )
        height, width = new_height, new_width
    below, right = size - height, size - width
    values = torch.nn.functional.pad(values, (right // 2, right - right // 2, below // 2, below - below // 2))
    return _normalised(values, mean, std)


def qwen2_vl_size(
    height: int, width: int, area: int, factor: int = 28, *, most: int | None = None
) -> tuple[int, int]:
    """Height and width, multiples of `factor`, to which Qwen2-VL resizes an image that is to have about `area` pixels.

    Of the multiples nearest to the image's own sides, those with `area` pixels stay, or with any number up to `most`;
    otherwise both sides are scaled to that bound, and rounded down where it was exceeded, up where it was not reached.

    Raises:
        ValueError: one side is more than 200 times the other.
    """
    if max(height, width) > 200 * min(height, width):
        raise ValueError(f"a picture of {height} x {width} pixels: one side may be at most 200 times the other")
    rows, columns = (max(1, round(side / factor)) for side in (height, width))
    pixels = rows * columns * factor**2
    if pixels > (most or area):
        shrink = math.sqrt(height * width / (most or area))
        rows, columns = (math.floor(side / shrink / factor) for side in (height, width))
    elif pixels < area:
        grow = math.sqrt(area / (height * width))
        rows, columns = (math.ceil(side * grow / factor) for side in (height, width))
    return rows * factor, columns * factor


def qwen2_vl_patches(
    images: UInt8, area: int, patch: int = 14, merge: int = 2, frames: int = 2, *, most: int | None = None
) -> tuple[torch.Tensor, tuple[int, int]]:
    """Images as Qwen2-VL's vision tower takes them: resized by Pillow's bicubic filter, standardised, cut into patches.

    Args:
        images: uint8 [B, H, W, 3].
        area, most: see `qwen2_vl_size`.
        patch: side of a patch in pixels.
        merge: the tower joins merge x merge neighbours into one token, so these follow each other.
        frames: an image stands for a film of so many equal frames.

    Returns:
        float32 [B * rows * columns, 3 * frames * patch * patch], and (rows, columns) of an image's patches.
    """
    from PIL import Image

    height, width = qwen2_vl_size(images.shape[1], images.shape[2], area, patch * merge, most=most)
    bicubic = Image.Resampling.BICUBIC
    resized = np.stack([np.asarray(Image.fromarray(image).resize((width, height), bicubic)) for image in images])
    values = _normalised(_unit_interval(resized), CLIP_MEAN, CLIP_STD)
    rows, columns = height // patch, width // patch
    # [B, 3, block row, row in block, y, block column, column in block, x]
    cut = values.view(len(images), 3, rows // merge, merge, patch, columns // merge, merge, patch)
    # [B, block row, block column, row in block, column in block, 3, frame, y, x]
    ordered = cut.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, frames, -1, -1)
    return ordered.reshape(len(images) * rows * columns, 3 * frames * patch**2), (rows, columns)


def _unit_interval(images: UInt8) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).to(torch.float32) / 255


def _normalised(values: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    import torch

    return (values - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
