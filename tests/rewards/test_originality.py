"""Originality: copies get 0, features are those of the models, and they are computed once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prdp.rewards import build_reward
from prdp.rewards.image_embeddings import load_embeddings
from prdp.rewards.originality import Originality


@pytest.fixture
def folder(tmp_path: Path, images: np.ndarray) -> Path:
    """Two of the four pictures of `images`, one of them in a folder of its own, and a file that is none."""
    place = tmp_path / "known"
    (place / "more").mkdir(parents=True)
    Image.fromarray(images[0]).save(place / "a.png")
    Image.fromarray(images[1]).resize((64, 48)).save(place / "more" / "b.jpg")
    (place / "notes.txt").write_text("not looked at")
    return place


def scores(reward: Originality, images: np.ndarray) -> np.ndarray:
    return reward.score(images, [""] * len(images), [{}] * len(images))


def dino_folder(place: Path, kind: str) -> Path:
    """A small random network in transformers format."""
    import torch
    import transformers

    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    if kind == "vit":
        config = transformers.ViTConfig(**size, intermediate_size=64)
        model: Any = transformers.ViTModel(config, add_pooling_layer=False)
    else:
        model = transformers.Dinov2Model(transformers.Dinov2Config(**size))
    for value in model.parameters():
        torch.nn.init.normal_(value, std=0.2)
    model.save_pretrained(place)
    preparation = transformers.BitImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28})
    preparation.save_pretrained(place)
    return place


def test_a_copy_has_none_and_a_recoloured_one_little(folder: Path, images: np.ndarray) -> None:
    reward = build_reward({"_target_": "prdp.rewards.originality.Originality", "folder": str(folder)})
    assert isinstance(reward, Originality)
    darker = (images[:1] * 0.5 + 20).astype(np.uint8)
    values = scores(reward, np.concatenate([images, darker]))
    assert values.dtype == np.float64
    assert values[0] == pytest.approx(0, abs=1e-6) and values[4] < 0.01 and values[1] < 0.1
    assert (values[2:4] > 0.5).all()
    # Pixels by hand: the square in the middle at 32 x 32, and the largest correlation.
    small = [np.asarray(Image.fromarray(one).resize((44, 32), Image.Resampling.BICUBIC))[:, 6:38] for one in images]
    correlation = np.corrcoef(small[2].ravel(), small[0].ravel())[0, 1]
    only = shutil.copytree(folder, folder.parent / "one", ignore=shutil.ignore_patterns("more"))
    assert scores(Originality(str(only)), images)[2] == pytest.approx(1 - correlation, abs=1e-5)


@pytest.mark.parametrize("kind", ["clip", "dinov2", "vit"])
def test_features_are_those_of_transformers(
    kind: str, folder: Path, clip_folder: Path, tmp_path: Path, images: np.ndarray
) -> None:
    import torch
    import transformers

    path = clip_folder if kind == "clip" else dino_folder(tmp_path / kind, kind)
    whole, images = images, images[:, :, 8:48]  # squares, which OpenAI and transformers cut alike
    if kind == "clip":
        model = transformers.CLIPModel.from_pretrained(path).eval()
        pixels = transformers.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
        with torch.inference_mode():
            output = model.get_image_features(**pixels(images=list(images), return_tensors="pt")).pooler_output
    else:
        # The whole pass by AutoModel, an image at a time; a pooling layer that it may add plays no part in the tokens.
        model = transformers.AutoModel.from_pretrained(path).eval()
        pixels = transformers.AutoImageProcessor.from_pretrained(path)
        with torch.inference_mode():
            tokens = [model(**pixels(images=one, return_tensors="pt")).last_hidden_state[:, 0] for one in images]
        output = torch.cat(tokens)
    expected = torch.nn.functional.normalize(output, dim=1).numpy()
    features = load_embeddings("mine", "model", str(path), "cpu", "float32", 3, None).features(images)
    np.testing.assert_allclose(features, expected, atol=2e-5)
    values = scores(Originality(str(folder), str(path), device="cpu"), whole)
    assert values[0] == pytest.approx(0, abs=1e-5)
    Originality.check(str(folder), str(path))


def test_features_of_the_folder_are_computed_once(
    folder: Path, tmp_path: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    first = Originality(str(folder), cache=str(cache))
    expected = scores(first, images)
    [kept] = cache.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr("prdp.rewards.originality._batches", lambda files: pytest.fail("computed again"))
        moved = shutil.move(folder, tmp_path / "elsewhere")
        again = Originality(str(moved), cache=str(cache))
    assert again.version == first.version
    np.testing.assert_array_equal(scores(again, images), expected)
    kept.write_bytes(b"damaged")
    np.testing.assert_array_equal(scores(Originality(str(moved), cache=str(cache)), images), expected)
    Image.fromarray(images[2]).save(tmp_path / "elsewhere" / "c.png")
    other = Originality(str(moved), cache=str(cache))
    assert other.version != first.version and scores(other, images)[2] == pytest.approx(0, abs=1e-6)


def test_what_cannot_be_compared_with_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    for arguments, words in (
        ({"folder": str(tmp_path / "no")}, "there is no such folder"),
        ({"folder": str(tmp_path / "empty")}, "holds no pictures"),
        ({"folder": str(folder), "model": str(tmp_path / "bert")}, "holds a 'bert' model, must be one of clip, dinov2"),
        ({"folder": str(folder), "cache": str(folder / "a.png")}, "is a file, must be a folder"),
        ({"folder": str(folder), "dtype": "int8"}, "dtype=int8"),
    ):
        with pytest.raises(ValueError, match=words):
            Originality.check(**arguments)
    (folder / "bad.png").write_bytes(b"none")
    with pytest.raises(ValueError, match=r"bad\.png is not a whole picture"):
        Originality(str(folder))
