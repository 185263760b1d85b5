"""Distances in feature spaces, by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from prdp.evaluation.diversity import (
    group_diversity,
    mean_pairwise_distance,
    paired_distance,
    pixel_features,
)
from prdp.evaluation.features import Clip, Pixels


def test_distance_of_pixel_features_is_the_root_mean_square_difference() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    features = pixel_features(images)
    assert features.dtype == np.float32
    expected = np.sqrt((((images[0].astype(float) - images[1]) / 255) ** 2).mean())
    assert np.linalg.norm(features[0] - features[1]) == pytest.approx(expected, rel=1e-5)
    black, white = np.zeros((1, 8, 8, 3), np.uint8), np.full((1, 8, 8, 3), 255, np.uint8)
    assert np.linalg.norm(pixel_features(black) - pixel_features(white)) == pytest.approx(1.0)


def test_large_pictures_are_averaged_down() -> None:
    images = np.zeros((1, 64, 128, 3), np.uint8)
    images[:, :, :64] = 200
    features = pixel_features(images)
    assert features.shape == (1, 32 * 16 * 3)
    np.testing.assert_allclose(features.reshape(16, 32, 3)[:, :16] * 255 * np.sqrt(features.size), 200, rtol=1e-5)


def test_mean_pairwise_distance_by_hand() -> None:
    # A right triangle with sides 3, 4, 5, a pair at distance 2, and a single image.
    features = np.array([[0, 0], [3, 0], [0, 4], [7, 7], [7, 9], [1, 1]], np.float32)
    values, labels = mean_pairwise_distance(features, [0, 0, 0, 5, 5, 9])
    assert labels.tolist() == [0, 5, 9]
    assert values[:2] == pytest.approx([4.0, 2.0])
    assert np.isnan(values[2])


def test_nearly_equal_images_keep_their_distance() -> None:
    features = np.full((2, 1000), 1000.0)
    features[1, 0] += 1e-6
    values, _ = mean_pairwise_distance(features, [0, 0])
    assert values[0] == pytest.approx(1e-6, rel=1e-3)


def test_group_diversity_of_training() -> None:
    images = np.zeros((4, 8, 8, 3), np.uint8)
    images[3] = 255
    assert group_diversity(images, 2).mean() == pytest.approx(0.5)
    assert np.isnan(group_diversity(images, 1)).all()


def test_paired_distance() -> None:
    np.testing.assert_allclose(paired_distance(np.array([[0.0, 0.0]]), np.array([[3.0, 4.0]])), [5.0])
    with pytest.raises(ValueError, match=r"\(1, 2\) and \(2, 2\)"):
        paired_distance(np.zeros((1, 2)), np.zeros((2, 2)))


def test_clip_features_are_unit_vectors_whatever_the_batch(tmp_path: Path) -> None:
    import torch
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(text_config=tower, vision_config=tower | {"image_size": 32, "patch_size": 8}, projection_dim=8)
    CLIPModel(config).save_pretrained(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (5, 40, 40, 3), dtype=np.uint8)
    Clip.check(str(tmp_path), batch_size=2)
    space = Clip(str(tmp_path), batch_size=2)
    features = space.features(images)
    assert features.shape == (5, 8)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(features, Clip(str(tmp_path), batch_size=5).features(images), atol=1e-5)
    assert space.version == Clip(str(tmp_path)).version != Pixels.version


def test_what_is_no_clip_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"path: .*config\.json is missing"):
        Clip.check(str(tmp_path))
