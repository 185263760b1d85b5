"""Preparing images: exact values that can be reasoned out, and shapes of odd sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from prdp.rewards.pixels import (
    CLIP_MEAN,
    CLIP_STD,
    check_batch,
    long_side_pixels,
    qwen2_vl_patches,
    qwen2_vl_size,
    short_side_pixels,
)

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def test_a_grey_image_stays_grey_and_is_standardised() -> None:
    images = np.full((2, 30, 50, 3), 51, np.uint8)
    expected = (0.2 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
    np.testing.assert_allclose(short_side_pixels(images, 8).numpy()[1, :, 3, 5], expected, rtol=1e-5)
    padded = long_side_pixels(images, 10).numpy()
    assert padded.shape == (2, 3, 10, 10)
    np.testing.assert_allclose(padded[0, :, 5, 5], expected, rtol=1e-5)
    np.testing.assert_allclose(padded[0, :, 0, 5], -np.array(CLIP_MEAN) / np.array(CLIP_STD), rtol=1e-5)


def test_the_short_side_is_resized_by_pillow_and_the_middle_kept(images: np.ndarray) -> None:
    resized = Image.fromarray(images[0]).resize((28, 20), Image.Resampling.BICUBIC)
    expected = np.asarray(resized)[:, 4:24].transpose(2, 0, 1) / 255.0
    np.testing.assert_allclose(short_side_pixels(images, 20, **PLAIN)[0], expected, atol=1e-6)


@pytest.mark.parametrize("size", [(40, 56), (56, 40), (37, 91), (91, 37), (17, 20), (20, 33)])
def test_the_pixels_are_those_of_transformers(size: tuple[int, int]) -> None:
    from transformers import CLIPImageProcessorPil

    pictures = np.random.default_rng(0).integers(0, 256, (2, *size, 3)).astype(np.uint8)
    prepare = CLIPImageProcessorPil(size={"shortest_edge": 20}, crop_size={"height": 20, "width": 20})
    expected = prepare(list(pictures), return_tensors="pt").pixel_values
    torch.testing.assert_close(short_side_pixels(pictures, 20, crop_rounds=False), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(40, 56), (90, 30), (301, 700), (28, 5600), (112, 56)])
def test_patches_are_those_of_transformers(size: tuple[int, int]) -> None:
    from transformers import Qwen2VLImageProcessorPil

    pictures = np.random.default_rng(0).integers(0, 256, (2, *size, 3)).astype(np.uint8)
    area = 8 * 28 * 28 if size != (28, 5600) else 256 * 28 * 28
    prepare = Qwen2VLImageProcessorPil(size={"shortest_edge": area, "longest_edge": area})
    expected = prepare(list(pictures), return_tensors="pt")
    patches, grid = qwen2_vl_patches(pictures, area)
    assert expected.image_grid_thw.tolist() == [[1, *grid]] * 2
    torch.testing.assert_close(patches, expected.pixel_values, rtol=0, atol=1e-6)


def test_sides_are_multiples_near_the_area() -> None:
    area = 256 * 28 * 28
    assert [qwen2_vl_size(*size, area) for size in [(512, 512), (1024, 512), (64, 64), (448, 448)]] == [
        (448, 448), (616, 308), (448, 448), (448, 448)
    ]
    with pytest.raises(ValueError, match="201 x 1 pixels"):
        qwen2_vl_size(201, 1, area)


def test_an_odd_excess_is_cropped_as_each_library_does(images: np.ndarray) -> None:
    wide = np.asarray(Image.fromarray(images[0]).resize((23, 20), Image.Resampling.BICUBIC))[None]
    values = wide[0].transpose(2, 0, 1) / 255.0
    np.testing.assert_allclose(short_side_pixels(wide, 20, **PLAIN)[0], values[:, :, 2:22], atol=1e-6)
    down = short_side_pixels(wide, 20, **PLAIN, crop_rounds=False)
    np.testing.assert_allclose(down[0], values[:, :, 1:21], atol=1e-6)


def test_the_long_side_is_padded_evenly_and_kept_when_it_fits(images: np.ndarray) -> None:
    kept = long_side_pixels(images, 56, **PLAIN)
    torch.testing.assert_close(kept[:, :, 8:48], torch.from_numpy(images).permute(0, 3, 1, 2) / 255)
    assert not kept[:, :, :8].any() and not kept[:, :, 48:].any()
    # 40 x 56 to 15 x 21: three rows above and three below.
    small = long_side_pixels(images, 21, **PLAIN)
    assert not small[:, :, :3].any() and not small[:, :, 18:].any() and small[:, :, 3:18].all(dim=1).any()


@pytest.mark.parametrize(
    ("images", "prompts", "message"),
    [
        (np.zeros((1, 4, 4, 3), np.float32), ["a"], r"float32 \[1, 4, 4, 3\], expected a uint8"),
        (np.zeros((4, 4, 3), np.uint8), ["a"], r"uint8 \[4, 4, 3\], expected"),
        (np.zeros((2, 4, 4, 3), np.uint8), ["a"], "2 images, 1 prompts"),
        (np.zeros((0, 4, 4, 3), np.uint8), [], "equal numbers above 0"),
        ([[0]], ["a"], "images is list"),
    ],
)
def test_bad_batches_are_named(images: object, prompts: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_batch(images, prompts, [{}] * len(prompts))
