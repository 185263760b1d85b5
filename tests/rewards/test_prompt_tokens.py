"""Tokens of prompts: what is cut is counted and said once; what the original tokenizers mend is mended."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

import pytest

from prdp.rewards.prompt_tokens import PromptCleaner, PromptTokens, check_tokenizer, load_tokenizer


def test_cut_prompts_keep_their_end_and_are_counted(clip_tokenizer: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokens = PromptTokens("r", load_tokenizer("tokenizer", str(clip_tokenizer), "CLIPTokenizer", 56), 5)
    with caplog.at_level(logging.WARNING):
        ids, mask = tokens(["a", "abcdef", "red a b c d"])
        tokens(["abcdef"])
    assert ids.tolist() == [[54, 26, 55, 55, 55], [54, 0, 1, 2, 55], [54, 53, 26, 27, 55]]
    assert mask.tolist() == [[1, 1, 1, 0, 0], [1] * 5, [1] * 5]
    assert tokens.cut == 3
    assert [record.getMessage()[:44] for record in caplog.records] == ["reward 'r': 2 of 3 prompts have more than 5 "]


def test_entities_are_resolved_and_plain_prompts_left_alone() -> None:
    clean = PromptCleaner("r")
    assert clean("it's  a  CAT") == "it's  a  CAT"
    assert clean("salt &amp;amp; pepper") == "salt & pepper"


def test_broken_unicode_is_mended() -> None:
    assert PromptCleaner("r")("a crÃ¨me “brûlée”") == 'a crème "brûlée"'


def test_without_ftfy_a_prompt_it_could_change_is_warned_about_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    clean = PromptCleaner("r")
    with caplog.at_level(logging.WARNING):
        assert [clean(prompt) for prompt in ("plain", "naïve", "“it”")] == ["plain", "naïve", "“it”"]
    assert len(caplog.records) == 1 and "pip install ftfy" in caplog.text


def test_a_tokenizer_of_another_model_is_refused(clip_tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ids go up to 55, but the model has 40 token embeddings"):
        load_tokenizer("tokenizer", str(clip_tokenizer), "CLIPTokenizer", 40)
    with pytest.raises(ValueError, match=r"holds no tokenizer\.json, no vocab\.json and no vocab\.txt"):
        check_tokenizer("tokenizer", str(tmp_path))
    with pytest.raises(ValueError, match=r"tokenizer\.json or vocab.* of the hub repository"):
        check_tokenizer("tokenizer", "openai/no-such-tokenizer")
