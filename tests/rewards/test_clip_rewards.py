"""HPSv2, PickScore, CLIPScore and the aesthetic score on small random weights, against independent implementations."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference_models import PROMPTS, open_clip_cosines, open_clip_tensors

from prdp.rewards.aesthetic import Aesthetic
from prdp.rewards.clipscore import CLIPScore
from prdp.rewards.hpsv2 import HPSv2
from prdp.rewards.pickscore import PickScore
from prdp.rewards.pixels import long_side_pixels, short_side_pixels

NOTHING: list[dict[str, Any]] = [{}] * len(PROMPTS)
START, END, A_END, RED_END = 54, 55, 26, 53
IDS = [
    [START, A_END, RED_END, 2, 0, 45, END],
    [START, A_END, RED_END, 2, 0, 45, END],
    [START, 19, 22, 40, 3, 14, 6, 44, END],
    [START, *[23] * 14, END],
]
"""PROMPTS by hand: 'a' 'red' 'c' 'a' 't', 't' 'w' 'o' 'd' 'o' 'g' 's', and 'x' until the 16 tokens are full."""


def test_hpsv2_is_the_cosine_of_an_independent_implementation(
    images: np.ndarray, open_clip_file: Path, clip_tokenizer: Path, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = {"path": str(open_clip_file.parent), "tokenizer": str(clip_tokenizer), "device": "cpu", "batch_size": 3}
    HPSv2.check(**arguments)
    reward = HPSv2(**arguments)
    with caplog.at_level(logging.WARNING):
        scores = reward.score(images, PROMPTS, NOTHING)
        reward.score(images, PROMPTS, NOTHING)
    expected = open_clip_cosines(open_clip_tensors(), long_side_pixels(images, 28), IDS)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert np.ptp(scores) > 0.01
    said = [record.getMessage() for record in caplog.records if "tokens" in record.getMessage()]
    assert said == [
        "reward 'hpsv2': 1 of 3 prompts have more than 16 tokens; what is beyond plays no part in the score "
        "(said once, for the first of them)"
    ]


def test_name_and_version_tell_release_weights_and_precision(
    open_clip_file: Path, clip_tokenizer: Path, tmp_path: Path
) -> None:
    def build(path: Path, **others: Any) -> HPSv2:
        return HPSv2(path=str(path), tokenizer=str(clip_tokenizer), device="cpu", **others)

    reward = build(open_clip_file)
    assert (reward.name, build(open_clip_file, release="2.1").name) == ("hpsv2", "hpsv2.1")
    assert build(open_clip_file).version == reward.version
    assert build(open_clip_file, dtype="bfloat16").version == f"{reward.version}-bfloat16"
    torch.save({"state_dict": open_clip_tensors(seed=1)}, tmp_path / "other.pt")
    assert build(tmp_path / "other.pt").version != reward.version


def test_bfloat16_agrees_roughly(images: np.ndarray, open_clip_file: Path, clip_tokenizer: Path) -> None:
    arguments = {"path": str(open_clip_file), "tokenizer": str(clip_tokenizer), "device": "cpu"}
    exact = HPSv2(**arguments).score(images, PROMPTS, NOTHING)
    np.testing.assert_allclose(HPSv2(**arguments, dtype="bfloat16").score(images, PROMPTS, NOTHING), exact, atol=0.05)


def test_clipscore_and_pickscore_are_what_transformers_computes(images: np.ndarray, clip_folder: Path) -> None:
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(clip_folder).eval()
    with torch.no_grad():
        pixels = short_side_pixels(images, 28, crop_rounds=False)
        image = model.get_image_features(pixel_values=pixels).pooler_output
        text = torch.cat([model.get_text_features(input_ids=torch.tensor([row])).pooler_output for row in IDS])
        expected = torch.nn.functional.cosine_similarity(image, text)
    for kind in (CLIPScore, PickScore):
        kind.check(path=str(clip_folder))
        reward = kind(path=str(clip_folder), device="cpu", batch_size=2)
        # 28 x 39 pixels: the crop's odd excess is the only thing the two treat differently here.
        scores = reward.score(images, PROMPTS, NOTHING)
        if kind is PickScore:
            np.testing.assert_allclose(scores, expected, atol=1e-5)
        else:
            assert np.abs(scores - expected.numpy()).max() > 1e-5
    square = np.ascontiguousarray(images[:, :, :40])
    clip, pick = (kind(path=str(clip_folder), device="cpu") for kind in (CLIPScore, PickScore))
    np.testing.assert_allclose(clip.score(square, PROMPTS, NOTHING), pick.score(square, PROMPTS, NOTHING), atol=1e-7)


def test_a_prefix_is_part_of_prompt_and_version(images: np.ndarray, clip_folder: Path) -> None:
    plain = CLIPScore(path=str(clip_folder), device="cpu")
    prefixed = CLIPScore(path=str(clip_folder), prefix="a ", device="cpu")
    np.testing.assert_array_equal(
        prefixed.score(images[:1], ["cat"], [{}]), plain.score(images[:1], ["a cat"], [{}])
    )
    assert prefixed.version != plain.version


def test_the_aesthetic_score_is_five_layers_on_normalised_features(
    images: np.ndarray, clip_folder: Path, head_tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    from transformers import CLIPModel

    torch.save(head_tensors, tmp_path / "sac+logos+ava1-l14-linearMSE.pth")
    arguments = {"path": str(tmp_path), "clip": str(clip_folder)}
    Aesthetic.check(**arguments)
    scores = Aesthetic(**arguments, device="cpu").score(images, PROMPTS, NOTHING)
    with torch.no_grad():
        features = CLIPModel.from_pretrained(clip_folder).get_image_features(
            pixel_values=short_side_pixels(images, 28)
        ).pooler_output
    values = features.numpy() / np.linalg.norm(features.numpy(), axis=1, keepdims=True)
    for place in (0, 2, 4, 6, 7):
        weight, bias = (head_tensors[f"layers.{place}.{kind}"].numpy() for kind in ("weight", "bias"))
        values = values @ weight.T + bias
    np.testing.assert_allclose(scores, values[:, 0], atol=1e-5)
    broken = {**head_tensors, "layers.0.weight": torch.zeros(1024, 768)}
    torch.save(broken, tmp_path / "wide.pth")
    with pytest.raises(ValueError, match=r"layers\.0\.weight is \[1024, 768\] instead of \[1024, 24\]"):
        Aesthetic.check(path=str(tmp_path / "wide.pth"), clip=str(clip_folder))


def test_checks_name_what_is_wrong(
    open_clip_file: Path, clip_folder: Path, clip_tokenizer: Path, tmp_path: Path
) -> None:
    tokenizer = str(clip_tokenizer)
    lacking = open_clip_tensors()
    del lacking["visual.transformer.resblocks.1.ln_2.bias"]
    torch.save({"state_dict": lacking}, tmp_path / "lacking.pt")
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, tmp_path / "other.pt")
    missing = "lacks vision_model.encoder.layers.1.layer_norm2.bias"
    for arguments, message in [
        ({"path": str(tmp_path / "lacking.pt")}, missing),
        ({"path": str(tmp_path / "other.pt")}, "is no CLIP checkpoint .* its first tensors are weight"),
        ({"path": str(tmp_path / "nowhere.pt")}, "there is no such file or folder"),
        ({"path": str(tmp_path)}, "the folder holds no HPS_v2_compressed.pt, only lacking.pt, other.pt"),
        ({"path": "xswu/HPSv2"}, "HPS_v2_compressed.pt of the hub repository .* HF_HUB_OFFLINE=1"),
        ({"path": str(open_clip_file), "release": "3"}, "release=3: must be 2.0 or 2.1"),
        ({"path": str(open_clip_file), "dtype": "int8"}, "dtype=int8: must be float32, bfloat16 or float16"),
        ({"path": str(open_clip_file), "device": "cuda:first"}, "device=cuda:first: must be auto, cpu, mps, cuda or"),
        ({"path": str(open_clip_file), "tokenizer": str(tmp_path)}, r"tokenizer=.* holds no tokenizer\.json"),
    ]:
        with pytest.raises(ValueError, match=message):
            HPSv2.check(**{"tokenizer": tokenizer, **arguments})
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="is of a 'bert' model, expected 'clip'"):
        PickScore.check(path=str(tmp_path))
    with pytest.raises(ValueError, match="got 4 images, 1 prompts"):
        PickScore(path=str(clip_folder), device="cpu").score(np.zeros((4, 8, 8, 3), np.uint8), ["a"], [{}])
