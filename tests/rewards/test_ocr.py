"""The OCR reward: its rule by hand, and the genuine engine on rendered text."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from prdp.prompts.quoted_text import MAX_SIZE, QuotedTextPrompts, texts
from prdp.rewards import build_reward
from prdp.rewards.ocr import Ocr, edit_distance, quoted, spelling


def picture(text: str, size: int = 36) -> np.ndarray:
    """Dark letters on a light ground, uint8 [160, 512, 3]."""
    image = Image.new("RGB", (512, 160), (235, 228, 210))
    ImageDraw.Draw(image).text((30, 50), text, fill=(30, 40, 90), font=ImageFont.load_default(size=size))
    return np.asarray(image)


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ('A sign that says "OPEN"', "OPEN"),
        ("A mug with \u201cGood Morning\u201d on it", "Good Morning"),
        ('"Left" on one door and "right" on the other', "Left right"),
    ],
)
def test_the_text_is_what_stands_in_double_quotes(prompt: str, text: str) -> None:
    assert quoted(prompt) == text


@pytest.mark.parametrize("prompt", ["A sign", 'An empty "" sign', 'A sign with " " on it', "it's 'single'"])
def test_a_prompt_that_quotes_nothing_is_refused(prompt: str) -> None:
    with pytest.raises(ValueError, match="quotes no text"):
        Ocr.check_prompt(prompt, {})


@pytest.mark.parametrize(
    ("read", "wanted", "value"),
    [
        ("OPEN", "open", 1.0),
        ("o p e n", "OPEN", 1.0),
        ("WE ARE OPEN TODAY", "open", 1.0),  # what else is there costs nothing
        ("OPFN", "open", 0.75),
        ("OPE", "open", 0.75),
        ("OPENN", "open", 1.0),
        ("", "open", 0.0),
        ("a whole other sentence", "open", 0.0),  # 18 edits, and no less than 0
        ("hel1o w0rld", "Hello World", 0.8),
    ],
)
def test_the_rule_by_hand(read: str, wanted: str, value: float) -> None:
    assert spelling(read, wanted) == pytest.approx(value)


def test_edit_distance_is_levenshteins() -> None:
    pairs = [("kitten", "sitting", 3), ("", "abc", 3), ("flaw", "lawn", 2), ("same", "same", 0), ("abcdef", "azced", 3)]
    for first, second, distance in pairs:
        assert edit_distance(first, second) == edit_distance(second, first) == distance


def test_the_engine_reads_rendered_text() -> None:
    reward = build_reward({"_target_": "prdp.rewards.ocr.Ocr"})
    assert isinstance(reward, Ocr)
    images = np.stack([picture("Golden River"), picture("Golden Rixxx"), picture(""), picture("SECOND BREAD")])
    prompts = ['A poster announcing "golden river"'] * 3 + ['A mug with "Second Bread"']
    values, parts = reward.score(images, prompts, [{}] * 4)
    assert values[[0, 3]].tolist() == [1, 1] and values[2] == 0
    assert values[1] == pytest.approx(8 / 11)
    assert parts["spelled"].tolist() == [1, 0, 0, 1]
    assert values.dtype == np.float64 and reward.version.startswith("1-rapidocr")


def test_built_in_prompts_quote_what_their_metadata_say() -> None:
    prompts = QuotedTextPrompts("heldout", 100)
    again = QuotedTextPrompts("heldout", 100)
    found = [prompts[index] for index in range(len(prompts))]
    assert found == [again[index] for index in range(100)]
    assert len({prompt for prompt, _ in found}) == 100
    for prompt, metadata in found:
        assert quoted(prompt) == metadata["text"]
        assert metadata["category"][0] == str(len(metadata["text"].split()))
    assert {metadata["category"] for _, metadata in found} == {"1 word", "2 words", "3 words"}


def test_held_out_texts_are_never_trained_on() -> None:
    train, heldout = ({text.casefold() for text in texts(split)} for split in ("train", "heldout"))
    assert heldout and not train & heldout
    with pytest.raises(ValueError, match="size is 2501, expected 1 to 2,500"):
        QuotedTextPrompts("heldout", MAX_SIZE["heldout"] + 1)
