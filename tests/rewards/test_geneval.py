"""GenEval's rule by hand and by the authors' numbers; detectors of the true layout with random weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_checkpoints import clip_folder, clip_tokenizer  # noqa: F401

from prdp.rewards.geneval import GenEval, crop
from prdp.rewards.geneval_rule import Detection, check_metadata, confident, correctness, relative_position
from prdp.rewards.object_detectors import check_detector, load_detector


def at(x: float, y: float, size: float = 10.0, score: float = 0.95) -> Detection:
    return Detection(np.array([x - size / 2, y - size / 2, x + size / 2, y + size / 2]), score)


def never(group: Sequence[Detection], name: str) -> list[str]:
    raise AssertionError("no colour is asked for")


def test_directions_begin_beyond_a_tenth_of_both_sizes() -> None:
    """Values of the authors' `relative_position`."""
    here = at(50, 50).box
    assert relative_position(at(30, 50).box, here) == {"left of"}
    assert relative_position(at(50, 70).box, here) == {"below"}
    assert relative_position(at(70, 30).box, here) == {"right of", "above"}
    assert relative_position(at(52, 50).box, here) == set(), "2 pixels are a tenth of 10 + 10"
    assert relative_position(at(53, 50).box, here) == set(), "1 of 3 pixels beyond is a third of the way"
    assert relative_position(at(54.5, 50).box, here) == {"right of"}


def test_only_confident_objects_count_and_the_most_confident_first() -> None:
    found = {"cat": [at(1, 1, score=0.3), at(2, 2, score=0.31), at(3, 3, score=0.8)], "dog": [at(4, 4, score=0.2)]}
    assert [one.score for one in confident(found, {"tag": "position"})["cat"]] == [0.8, 0.31]
    assert confident(found, {"tag": "counting"}) == {}
    many = {"cat": [at(n, n, score=0.5 + n / 100) for n in range(20)]}
    assert len(confident(many, {})["cat"]) == 16


@pytest.mark.parametrize(
    ("found", "expected"),
    [(0, (0.0, 0.0)), (1, (0.0, 0.5)), (2, (1.0, 1.0)), (3, (0.0, 0.5)), (5, (0.0, 0.0))],
)
def test_counting(found: int, expected: tuple[float, float]) -> None:
    bears = {count: [{"class": "bear", "count": count}] for count in (2, 3)}
    metadata = {"tag": "counting", "include": bears[2], "exclude": bears[3]}
    objects = {"bear": [at(10 * n, 10) for n in range(found)]}
    assert correctness(objects, metadata, never) == pytest.approx(expected)


def test_too_many_cost_nothing_where_they_are_not_excluded() -> None:
    metadata = {"include": [{"class": "bear", "count": 1}]}
    assert correctness({"bear": [at(0, 0), at(9, 9)]}, metadata, never) == (1.0, 1.0)


def test_colours_are_asked_of_as_many_as_are_wanted() -> None:
    asked: list[int] = []

    def colors(group: Sequence[Detection], name: str) -> list[str]:
        asked.append(len(group))
        return ["red", "blue", "red"][: len(group)]

    metadata = {"include": [{"class": "cup", "count": 2, "color": "red"}, {"class": "bus", "count": 1, "color": "red"}]}
    objects = {"cup": [at(0, 0), at(5, 5), at(9, 9)]}
    strict, partial = correctness(objects, metadata, colors)
    assert asked == [2], "not of a bus that is not there"
    assert (strict, partial) == (0.0, pytest.approx((1 + 0.5 + 0 + 0) / 4))


def test_a_position_needs_its_target() -> None:
    clauses = [{"class": "dog", "count": 1}, {"class": "cat", "count": 1, "position": ["left of", 0]}]
    dog, left, right = at(50, 50), at(10, 50), at(90, 50)
    assert correctness({"dog": [dog], "cat": [left]}, {"include": clauses}, never) == (1.0, 1.0)
    assert correctness({"dog": [dog], "cat": [right]}, {"include": clauses}, never) == (0.0, pytest.approx(2 / 3))
    assert correctness({"cat": [left]}, {"include": clauses}, never) == (0.0, pytest.approx(1 / 3))
    # The most confident one counts, as with the authors.
    assert correctness({"dog": [dog], "cat": [right, left]}, {"include": clauses}, never)[0] == 0.0


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, "has no list 'include'"),
        ({"include": ["cat"]}, r"include\[0\] is 'cat', must be a mapping"),
        ({"include": [{"class": "cat", "count": 0}]}, "has the count 0"),
        ({"include": [{"class": "cat", "count": 1, "color": "mauve"}]}, "has the color 'mauve'"),
        ({"include": [{"class": "cat", "count": 1, "position": ["below", 0]}]}, r"has the position \['below', 0\]"),
        ({"include": [{"class": "cat", "count": 1}], "exclude": [{"count": 1}]}, r"exclude\[0\] has the class None"),
    ],
)
def test_metadata_that_ask_for_nothing_are_refused(metadata: Mapping[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=f"prompt 'a cat'.* {expected}|prompt 'a cat': {expected}"):
        check_metadata("a cat", metadata)


def test_what_is_cut_out_is_grey_around_the_object() -> None:
    image = np.full((8, 9, 3), 200, np.uint8)
    mask = np.zeros((8, 9), bool)
    mask[2:4, 3:6] = True
    cut = crop(image, Detection(np.array([2.0, 1.0, 7.0, 5.0]), 1.0, mask))
    assert cut.shape == (4, 5, 3)
    assert cut[0, 0].tolist() == [0x99] * 3 and cut[1, 1].tolist() == [200] * 3
    assert crop(image, Detection(np.array([3.2, 3.2, 3.3, 3.3]), 1.0)).shape == (1, 1, 3)


@pytest.fixture(scope="module")
def mask2former(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The true layout, narrow, with random weights; its classes are three of COCO's."""
    import torch
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig
    from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

    torch.manual_seed(0)
    backbone = SwinConfig(
        image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16,
        encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=16, num_queries=6,
        id2label={0: "cat", 1: "mouse", 2: "bus"}, label2id={"cat": 0, "mouse": 1, "bus": 2},
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("mask2former")
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    Mask2FormerImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def test_the_authors_detector_cuts_out_instances(mask2former: Path) -> None:
    detector, files = load_detector("detector", str(mask2former), "cpu", "float32")
    assert [file.name for file in files] == ["model.safetensors"]
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    found = detector.detect(image, ["cat", "computer mouse", "bus"], 0.0)
    detections = [one for group in found.values() for one in group]
    assert detections and set(found) <= {"cat", "computer mouse", "bus"}
    for one in detections:
        assert one.mask is not None and one.mask.shape == (40, 56)
        left, top, right, bottom = one.box.astype(int)
        assert one.mask[top:bottom, left:right].sum() == one.mask.sum() and one.mask[top].any()
    assert detector.unknown(["cat", "zebra"]) == ["zebra"]
    assert detector.detect(image, ["cat"], 1.0) == {}


def test_images_are_judged_end_to_end(
    mask2former: Path, clip_folder: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    for name in ("THRESHOLD", "COUNTING_THRESHOLD"):  # random weights are sure of nothing
        monkeypatch.setattr(f"prdp.rewards.geneval_rule.{name}", 0.0)
    settings = {"detector": str(mask2former), "clip": str(clip_folder)}
    GenEval.check(**settings)
    images = np.random.default_rng(1).integers(0, 256, (2, 48, 48, 3), np.uint8)
    metadata = [{"include": [{"class": name, "count": 1, "color": "red"}]} for name in ("cat", "bus")]
    partial, strict = (GenEval(**settings, credit=credit) for credit in ("partial", "strict"))
    values, parts = partial.score(images, ["a red cat", "a red bus"], metadata)
    np.testing.assert_array_equal(values, parts["partial"])
    np.testing.assert_array_equal(strict.score(images, ["a red cat", "a red bus"], metadata)[0], parts["strict"])
    assert set(values) <= {0.0, 0.5, 1.0} and partial.version != strict.version
    with pytest.raises(ValueError, match="asks for 'zebra', which the detector does not know"):
        partial.score(images[:1], ["a zebra"], [{"include": [{"class": "zebra", "count": 1}]}])


def test_a_detector_of_whatever_is_named(tmp_path: Path, clip_tokenizer: Path) -> None:  # noqa: F811
    import torch
    from transformers import CLIPTokenizer, Owlv2Config, Owlv2ForObjectDetection, Owlv2Processor
    from transformers.models.owlv2.image_processing_pil_owlv2 import Owlv2ImageProcessorPil

    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(clip_tokenizer)
    text = {"vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 16, "eos_token_id": tokenizer.eos_token_id}
    vision = {"image_size": 32, "patch_size": 8, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = Owlv2Config(text_config=text, vision_config={**vision, "num_attention_heads": 2}, projection_dim=16)
    Owlv2ForObjectDetection(config).save_pretrained(tmp_path)
    processor = Owlv2ImageProcessorPil(size={"height": 32, "width": 32})
    Owlv2Processor(image_processor=processor, tokenizer=tokenizer).save_pretrained(tmp_path)
    detector, _ = load_detector("detector", str(tmp_path), "cpu", "float32")
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    found = detector.detect(image, ["cat", "tv remote"], 0.0)
    assert sum(len(group) for group in found.values()) == 16, "a box a patch"
    assert set(found) <= {"cat", "tv remote"} and detector.unknown(["anything"]) == []


def test_another_model_is_refused(clip_folder: Path) -> None:  # noqa: F811
    with pytest.raises(ValueError, match="holds a 'clip' model, must be one of mask2former, owlv2, owlvit"):
        check_detector("detector", str(clip_folder))
    with pytest.raises(ValueError, match="credit=half: must be one of partial, strict"):
        GenEval.check(credit="half")
