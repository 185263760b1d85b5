"""JPEG sizes, in kB, with opposite signs."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from prdp.rewards.compressibility import Compressibility, Incompressibility


def test_sizes_are_those_of_the_files_in_units_of_1000_bytes(images: np.ndarray) -> None:
    sizes = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "jpeg", quality=95)
        sizes.append(len(file.getvalue()) / 1000)
    prompts, metadata = [""] * len(images), [{}] * len(images)
    np.testing.assert_array_equal(Incompressibility().score(images, prompts, metadata), sizes)
    np.testing.assert_array_equal(Compressibility().score(images, prompts, metadata), -np.array(sizes))


def test_plain_images_are_more_compressible_than_noise() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    both = np.concatenate([noise, np.full_like(noise, 128)])
    noisy, plain = Compressibility().score(both, ["", ""], [{}, {}])
    assert noisy < -5 and -1.5 < plain < 0


def test_floats_are_refused() -> None:
    with pytest.raises(ValueError, match="expected a uint8 array"):
        Compressibility().score(np.zeros((1, 8, 8, 3)), [""], [{}])
