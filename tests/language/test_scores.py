"""Scores of gold tokens: right, once, and refused where they are another assistant's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prdp.language.assistants import LocalAssistant
from prdp.language.records import encode_all, read_records
from prdp.language.scores import Scores, score_files
from prdp.language.shapes_task import records
from prdp.support.errors import StartError
from prdp.support.json_lines import json_line


def write(file: Path, count: int, seed: int) -> Path:
    made = records("train", count, seed)
    file.write_text("".join(json_line({"prompt": one.prompt, "answer": one.answer}) for one in made))
    return file


def score(folder: Path, files: list[Path], assistant: Any, tokenizer: Any, limit: int = 64) -> list[str]:
    return list(score_files(folder, files, assistant, tokenizer, {"path": "large"}, "cut", limit))


def test_scores_are_those_of_each_text_alone_and_are_not_computed_again(
    models: dict[str, Any], tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [write(tmp_path / "a.jsonl", 5, 0), write(tmp_path / "b.jsonl", 3, 1)]
    assistant = LocalAssistant(models["assistant"], "large", "one", batch_size=4)
    assert len(score(tmp_path / "scores", files, assistant, tokenizer)) == 2
    found = Scores.open(tmp_path / "scores").read()
    examples = [one for file in files for one in encode_all(tokenizer, read_records(file), 64)]
    assert [one.example for one in found] == examples
    for one in found:
        ids = torch.tensor([one.example.prompt + one.example.answer])
        with torch.no_grad():
            log_probs = torch.log_softmax(models["assistant"].network(input_ids=ids).logits[0], -1)
        part = log_probs[len(one.example.prompt) - 1 : -1]
        gold = part[torch.arange(len(part)), torch.tensor(one.example.answer)]
        np.testing.assert_allclose(one.scored.log_probs, gold.numpy(), atol=1e-5)
        np.testing.assert_array_equal(one.scored.tops, part.argmax(-1).numpy())

    monkeypatch.setattr(assistant, "score", lambda examples: pytest.fail("it was scored before"))
    assert all("was scored before" in line for line in score(tmp_path / "scores", files, assistant, tokenizer))
    write(files[1], 2, 2)
    with pytest.raises(pytest.fail.Exception):
        score(tmp_path / "scores", files, assistant, tokenizer)
    other = LocalAssistant(models["assistant"], "large", "two")
    with pytest.raises(StartError, match="holds scores of another assistant or tokenizer"):
        score(tmp_path / "scores", files, other, tokenizer)


def test_records_that_cannot_be_scored_are_told(models: dict[str, Any], tokenizer: Any, tmp_path: Path) -> None:
    assistant = LocalAssistant(models["assistant"], "large", "one")
    file = write(tmp_path / "a.jsonl", 2, 0)
    with pytest.raises(StartError, match=r"record 1 has \d+ tokens, more than the 9 that are read"):
        score(tmp_path / "scores", [file], assistant, tokenizer, limit=9)
    for line, told in (
        ('{"prompt": "a"}', "line 3 is damaged: it lacks 'answer'"),
        ('{"prompt": "a", "answer": 3}', "line 3 is damaged: prompt and answer must be text"),
        ('{"prompt": "a", "answer": " "}', "line 3 is damaged: the prompt or the answer is empty"),
        ("{", "line 3 is damaged"),
    ):
        damaged = tmp_path / "damaged.jsonl"
        damaged.write_text(file.read_text() + line + "\n")
        with pytest.raises(StartError, match=told):
            score(tmp_path / "scores", [damaged], assistant, tokenizer)
    with pytest.raises(StartError, match="there is no such file"):
        read_records(tmp_path / "none.jsonl")


def test_damaged_scores_are_refused(models: dict[str, Any], tokenizer: Any, tmp_path: Path) -> None:
    from prdp.support.storage import load_tensors, save_tensors

    assistant = LocalAssistant(models["assistant"], "large", "one")
    score(tmp_path / "scores", [write(tmp_path / "a.jsonl", 2, 0)], assistant, tokenizer)
    file = tmp_path / "scores" / "a.safetensors"
    whole = load_tensors(file)
    for name, value, told in (
        ("log_probs", whole["log_probs"] + 9, "other numbers than log-probabilities"),
        ("answer_lengths", whole["answer_lengths"][:1], "lengths do not add up"),
    ):
        save_tensors(file, {**whole, name: value})
        with pytest.raises(StartError, match=told):
            Scores.open(tmp_path / "scores").read()
    with pytest.raises(StartError, match=r"there is no scores\.json"):
        Scores.open(tmp_path)
