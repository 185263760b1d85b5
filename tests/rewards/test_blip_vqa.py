"""BLIP-VQA on a small random BLIP, against passes of one image and one question, and spaCy's own phrases."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from prdp.rewards.blip_vqa import PARSER, BlipVQA, questions
from prdp.rewards.dependencies import MissingDependencyError

BOS, ENCODER = 2, 3


def chance_of_yes(folder: Path, image: np.ndarray, question: str) -> float:
    """By the published formula, on transformers' own modules."""
    from transformers import AutoProcessor, BlipForQuestionAnswering

    model, processor = BlipForQuestionAnswering.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    inputs = processor(images=image, text=question, return_tensors="pt")
    ids = torch.tensor([[ENCODER, *inputs["input_ids"][0, 1:].tolist()]])
    yes, no = processor.tokenizer.convert_tokens_to_ids(["yes", "no"])
    with torch.no_grad():
        seen = model.vision_model(inputs["pixel_values"]).last_hidden_state
        read = model.text_encoder(ids, encoder_hidden_states=seen).last_hidden_state
        chances = model.text_decoder(torch.tensor([[BOS]]), encoder_hidden_states=read).logits[0, 0].softmax(-1)
    return float(chances[yes] / (chances[yes] + chances[no]))


def test_scores_are_products_of_the_chances_of_yes(images: np.ndarray, blip_folder: Path) -> None:
    BlipVQA.check(path=str(blip_folder))
    reward = BlipVQA(path=str(blip_folder), device="cpu", batch_size=2)
    metadata = [{"noun_phrases": ["A red cat.", "two", "the left"]}, {"noun_phrases": []}, {"noun_phrases": ["cat"]}]
    scores = reward.score(images[:3], ["p", "q", "r"], metadata)
    red, two = (chance_of_yes(blip_folder, images[0], question) for question in ("a red cat?", "two?"))
    np.testing.assert_allclose(scores, [red * two, 1.0, chance_of_yes(blip_folder, images[2], "cat?")], atol=1e-5)
    assert 0 < scores[0] < 1


def test_questions_are_prepared_as_published() -> None:
    asked = questions("p", {"noun_phrases": ["A (red) Bench", "top", "the side", *"abcdefghi"]})
    assert asked == ["a red bench?", *(f"{letter}?" for letter in "abcdefg")]


def test_phrases_are_those_of_spacy() -> None:
    """Of the benchmark's lists; the last two as its parser has them, whatever a reader would say."""
    pytest.importorskip("spacy")
    if importlib.util.find_spec(PARSER) is None:
        pytest.skip(f"needs {PARSER}")
    assert questions("a green bench and a blue bowl", {}) == ["a green bench?", "a blue bowl?"]
    long = "A long, narrow yellow kitchen with black and white floor tiles."
    assert questions(long, {}) == ["a long, narrow yellow kitchen?", "black and white floor tiles?"]
    assert questions("a cubic block and a cylindrical container of markers", {}) == [
        *("a cubic block?", "a cylindrical container?", "markers?"),
    ]
    assert questions("a small block and a cylindrical soda can", {}) == ["a small block?", "a cylindrical soda?"]


def test_what_is_missing_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    BlipVQA.check_prompt("p", {"noun_phrases": ["a cat"]})
    with pytest.raises(ValueError, match=r"prompt 'p': noun_phrases='a cat' of its metadata must be a list of texts"):
        BlipVQA.check_prompt("p", {"noun_phrases": "a cat"})
    there: dict[str, object] = {"spacy": None, PARSER: None}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: there[name])
    with pytest.raises(MissingDependencyError, match=re.escape("pip install 'prdp[noun_phrases]'")):
        BlipVQA.check_prompt("a cat", {})
    there["spacy"] = object()
    with pytest.raises(MissingDependencyError, match="python -m spacy download en_core_web_sm"):
        BlipVQA.check_prompt("a cat", {})
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(ValueError, match="must hold BlipForQuestionAnswering"):
        BlipVQA.check(path=str(tmp_path))
