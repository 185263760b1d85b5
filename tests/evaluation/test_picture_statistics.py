"""Statistics of pictures, against values by hand and PIL's HSV."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from prdp.evaluation.picture_statistics import picture_statistics


def test_plain_pictures() -> None:
    images = np.zeros((3, 8, 8, 3), np.uint8)
    images[1] = 255
    images[2, :, :, 0] = 255
    found = picture_statistics(images)
    assert found["brightness"] == pytest.approx([0, 1, 0.299])
    assert found["saturation"] == pytest.approx([0, 0, 1])
    # Of red: rg = 1, yb = .5, without spread.
    assert found["colorfulness"] == pytest.approx([0, 0, 0.3 * np.hypot(1, 0.5)])
    assert found["contrast"] == pytest.approx([0, 0, 0], abs=1e-6)
    assert found["detail"] == pytest.approx([0, 0, 0], abs=1e-6)


def test_stripes_have_contrast_and_detail_in_one_direction() -> None:
    images = np.zeros((1, 8, 10, 3), np.uint8)
    images[:, ::2] = 255
    found = picture_statistics(images)
    assert found["contrast"] == pytest.approx([0.5]) and found["detail"] == pytest.approx([0.5])


def test_saturation_is_that_of_hsv() -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    hsv = np.asarray(Image.fromarray(image).convert("HSV"))
    assert picture_statistics(image[None])["saturation"] == pytest.approx(hsv[..., 1].mean() / 255, abs=3e-3)


def test_points_have_none() -> None:
    assert picture_statistics(np.zeros((4, 1, 2, 3), np.uint8)) == {}
    assert picture_statistics(np.zeros((0, 8, 8, 3), np.uint8)) == {}
