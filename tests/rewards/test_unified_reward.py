"""UnifiedReward on narrow random weights, against transformers' processor and generation, and LLaVA's own code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from narrow_hpsv3 import IMAGE, TEMPLATE, write_narrow_hpsv3
from narrow_llava_judge import picture, write_narrow_llava
from narrow_qwen_judge import write_narrow_judge
from PIL import Image
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from prdp.rewards.llava_onevision import LlavaOnevision
from prdp.rewards.unified_reward import UnifiedReward, pixel_bounds

PROMPTS = ["a red cat", "two dögs, №5", "", "x y" * 9]
NOTHING: list[dict[str, Any]] = [{}] * len(PROMPTS)
ANSWER = "Alignment Score (1-5): {0}\nCoherence Score (1-5): 2.5\nStyle Score (1-5): 4"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow Qwen2.5-VL with the tokenizer and the template of the narrow Qwen2-VL."""
    place = tmp_path_factory.mktemp("unified")
    write_narrow_hpsv3(place)
    folder = place / "qwen2_vl"
    write_narrow_judge(folder)
    return folder


def reward_of(folder: Path, **more: Any) -> UnifiedReward:
    settings = {"device": "cpu", "dtype": "float32", "max_new_tokens": 6, **more}
    return UnifiedReward(str(folder), str(folder / "ask.txt"), **settings)


def expected_answer(folder: Path, picture: np.ndarray, prompt: str) -> str:
    """By transformers alone, one picture at a time."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokenizer = AutoTokenizer.from_pretrained(folder)
    seen = Qwen2VLImageProcessorPil.from_pretrained(folder)(images=[Image.fromarray(picture)], return_tensors="pt")
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder).eval()
    parts = [{"type": "image"}, {"type": "text", "text": f"Marks for [{prompt}], {{as told}}."}]
    said = tokenizer.apply_chat_template(
        [{"role": "user", "content": parts}], chat_template=TEMPLATE, tokenize=False, add_generation_prompt=True
    )
    count = int(seen["image_grid_thw"].prod()) // 4
    given = tokenizer([said.replace("<|image_pad|>", "<|image_pad|>" * count)], return_tensors="pt")
    kinds = (given["input_ids"] == IMAGE).int()
    written = model.generate(**given, **seen, mm_token_type_ids=kinds, max_new_tokens=6, do_sample=False)
    return str(tokenizer.decode(written[0, given["input_ids"].shape[1] :], skip_special_tokens=True))


def test_answers_are_those_of_transformers_one_by_one(images: np.ndarray, folder: Path) -> None:
    """In one batch, padded on the left, of pictures that are no multiples of a patch."""
    UnifiedReward.check(str(folder), str(folder / "ask.txt"))
    pictures = images[: len(PROMPTS)].repeat(3, 1).repeat(2, 2)
    found = reward_of(folder).answers(pictures, PROMPTS)
    expected = [expected_answer(folder, *pair) for pair in zip(pictures, PROMPTS, strict=True)]
    assert found == expected
    assert len(set(found)) > 1, "the narrow model tells pictures and prompts apart"


@pytest.fixture(scope="module")
def llava(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("llava") / "judge"
    shutil.copytree(folder, place)
    write_narrow_llava(place)
    return place


@pytest.mark.parametrize(
    ("size", "prompts", "written"),
    [
        ((96, 64), ["a red cat", ""], [[119, 51, 70, 75, 6, 237], [119, 164, 106, 5, 159, 106]]),
        ((200, 512), ["two dögs"], [[19, 124, 66, 60, 171, 109]]),
        ((1024, 768), ["x y"], [[70, 75, 238, 238, 109, 171]]),
    ],
)
def test_llavas_answers_are_those_of_its_authors_code(
    llava: Path, size: tuple[int, int], prompts: list[str], written: list[list[int]]
) -> None:
    """Tokens that UnifiedReward's own llava package wrote of the same folder and pictures, with transformers 4.45."""
    UnifiedReward.check(str(llava), str(llava / "ask.txt"))
    pictures = np.stack([picture(*size)] * len(prompts))
    tokenizer = Qwen2Tokenizer.from_pretrained(llava)
    expected = [tokenizer.decode(ids, skip_special_tokens=True) for ids in written]
    assert reward_of(llava).answers(pictures, prompts) == expected


def test_llavas_frequencies_stay_float32(llava: Path) -> None:
    network = LlavaOnevision("path", llava, "cpu", "bfloat16").network
    assert network.lm_head.weight.dtype == torch.bfloat16
    frequencies = network.model.language_model.rotary_emb.inv_freq
    np.testing.assert_allclose(frequencies, 1e6 ** (-np.arange(8) / 8), rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"image_aspect_ratio": "pad"}, "image_aspect_ratio=pad: must be anyres_max_9"),
        ({"mm_projector_type": "linear"}, "mm_projector_type=linear: must be mlp2x_gelu"),
        ({"image_grid_pinpoints": [[384, 500]]}, "must be pairs of multiples of a tile's side"),
        ({"image_grid_pinpoints": [[336, 336]]}, "tiles 336 wide, .* the tower has places for 729"),
        ({"intermediate_size": 32}, r"has other shapes: model\.language_model\.layers\.0\.mlp"),
        ({"num_hidden_layers": 3}, r"lacks model\.language_model\.layers\.2"),
    ],
)
def test_llavas_that_are_not_computed_are_named(
    llava: Path, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    shutil.copytree(llava, tmp_path / "judge")
    file = tmp_path / "judge" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(ValueError, match=says):
        UnifiedReward.check(str(file.parent), str(llava / "ask.txt"))


def test_marks_are_read_from_lines(images: np.ndarray, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reward = reward_of(folder, batch_size=2)
    said = iter(f"It is a picture.\n{ANSWER.format(mark)}" for mark in ("1", "5", "2.694700002670288", "3."))
    monkeypatch.setattr(reward, "answers", lambda pictures, prompts: [next(said) for _ in prompts])
    means, marks = reward.score(images[:4], PROMPTS, NOTHING)
    np.testing.assert_allclose(marks["alignment"], [1, 5, 2.69470000267, 3])
    assert marks["coherence"].tolist() == [2.5] * 4 and marks["style"].tolist() == [4] * 4
    np.testing.assert_allclose(means, [(mark + 6.5) / 3 for mark in marks["alignment"]])
    first = reward_of(folder, criteria=["final"])
    monkeypatch.setattr(first, "answers", lambda *_: ["cat (animal): 1\nred (attribute): 0\nFinal Score: 3.5"])
    assert first.score(images[:1], PROMPTS[:1], [{}])[0].tolist() == [3.5]
    assert first.version != reward.version


def test_an_answer_that_cannot_be_read(images: np.ndarray, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = "Alignment Score (1-5): 3"
    for answer, says in ((half, "lines with points for coherence"), (ANSWER.format(7), "mark of 7")):
        strict, lenient = reward_of(folder), reward_of(folder, unreadable=1.0)
        for one in (strict, lenient):
            monkeypatch.setattr(one, "answers", lambda *_, answer=answer: [answer])
        with pytest.raises(ValueError, match=rf"prompt 'a red cat': the answer has .*{says}"):
            strict.score(images[:1], PROMPTS[:1], [{}])
        means, marks = lenient.score(images[:1], PROMPTS[:1], [{}])
        assert means.tolist() == marks["style"].tolist() == [1.0]


def test_mistakes_are_told_before_weights_are_loaded(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "llava"
    shutil.copytree(folder, other)
    (other / "config.json").write_text(json.dumps({"model_type": "llava_onevision"}))
    (tmp_path / "no_place.txt").write_text("Marks for it.")
    ask = str(folder / "ask.txt")
    for arguments, says in (
        ((str(other), ask), "is of a 'llava_onevision' model"),
        ((str(folder), str(tmp_path / "no_place.txt")), r"has the places none, must have \{prompt\} alone"),
        ((str(folder), ask, ["style", "style"]), "must be a list of different names"),
        ((str(folder), ask, ["style"], 0), "max_new_tokens=0"),
        ((str(folder), ask, ["style"], 9, 6.0), "unreadable=6.0: must be null or from 1 to 5"),
    ):
        with pytest.raises(ValueError, match=says):
            UnifiedReward.check(*arguments)
    with pytest.raises(ValueError, match=r"has <\|image_pad\|> in it"):
        UnifiedReward.check_prompt("a <|image_pad|>", {})
    assert pixel_bounds(folder) == (3136, 12845056)
