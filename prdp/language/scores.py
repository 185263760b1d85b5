"""What an assistant says of the tokens of answers, computed once: a file of scores for each file of data."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prdp.language.assistants import Assistant, Scored
from prdp.language.records import Example, encode_all, file_digest, read_records
from prdp.support.errors import StartError
from prdp.support.json_lines import load_json
from prdp.support.storage import load_tensors, save_tensors, write_atomically

MANIFEST = "scores.json"
_FORMAT = 1
_TENSORS = ("tokens", "prompt_lengths", "answer_lengths", "log_probs", "tops")


@dataclass(frozen=True)
class ScoredExample:
    """An example with what the assistant says of it.

    Attributes:
        example: its tokens.
        scored: of its answer.
    """

    example: Example
    scored: Scored


@dataclass(frozen=True)
class Scores:
    """A folder of scores.

    Attributes:
        folder: of it.
        assistant: its name and digest, and how it is reached.
        tokenizer: digest of the tokenizer that cut the texts.
        files: name of each file of scores -> name and digest of its data.
    """

    folder: Path
    assistant: dict[str, Any]
    tokenizer: str
    files: dict[str, dict[str, str]]

    @classmethod
    def open(cls, folder: Path) -> Scores:
        """Read what a folder is.

        Raises:
            StartError: it is none, or of another format.
        """
        file = folder / MANIFEST
        try:
            content = load_json(file.read_bytes())
            if content["format"] != _FORMAT:
                raise ValueError(f"format {content['format']}, expected {_FORMAT}")
            return cls(folder, dict(content["assistant"]), str(content["tokenizer"]), dict(content["files"]))
        except FileNotFoundError:
            raise StartError(f"scores={folder}: there is no {MANIFEST}; `prdp collm score` writes one") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StartError(f"scores: {file} is damaged: {error}") from None

    def read(self) -> list[ScoredExample]:
        """All examples, in the order of the files.

        Raises:
            StartError: a file is missing or damaged.
        """
        found: list[ScoredExample] = []
        for name in self.files:
            try:
                found += _unpacked(load_tensors(self.folder / name))
            except (OSError, ValueError, KeyError) as error:
                raise StartError(f"scores: {self.folder / name}: {error}") from None
        return found

    def digest(self) -> str:
        """Of the data: what the files were made of."""
        return "+".join(one["digest"] for one in self.files.values())

    def write_manifest(self) -> None:
        """Write what `open` reads."""
        content = {
            "format": _FORMAT,
            "assistant": self.assistant,
            "tokenizer": self.tokenizer,
            "files": self.files,
        }
        write_atomically(self.folder / MANIFEST, (json.dumps(content, indent=2) + "\n").encode())


def score_files(
    folder: Path,
    data: Sequence[Path],
    assistant: Assistant,
    tokenizer: Any,
    identity: dict[str, Any],
    tokenizer_digest: str,
    max_length: int,
) -> Iterator[str]:
    """Score files of records; those that the folder has already, of this assistant, are left.

    Args:
        identity: how the assistant is reached, for the manifest.
        max_length: tokens of a record at most.

    Yields:
        a line about each file.

    Raises:
        StartError: files of one name, records that are too long, or a folder of another assistant or tokenizer; before
            anything is scored.
    """
    if len({file.stem for file in data}) < len(data):
        raise StartError(f"data={[str(file) for file in data]}: two files have one name")
    read = [
        (file, file_digest(file), encode_all(tokenizer, read_records(file, True), max_length, f"data={file}"))
        for file in data
    ]
    folder.mkdir(parents=True, exist_ok=True)
    scores = Scores(folder, {**identity, "digest": assistant.digest}, tokenizer_digest, {})
    if (folder / MANIFEST).exists():
        before = Scores.open(folder)
        if before.assistant["digest"] != assistant.digest or before.tokenizer != tokenizer_digest:
            raise StartError(
                f"output_dir={folder}: holds scores of another assistant or tokenizer; name another folder"
            )
        scores.files.update(before.files)
    for file, digest, examples in read:
        name = f"{file.stem}.safetensors"
        if scores.files.get(name, {}).get("digest") == digest and (folder / name).exists():
            yield f"{file}: was scored before"
            continue
        scored = list(assistant.score(examples))
        save_tensors(folder / name, _packed(examples, scored))
        scores.files[name] = {"data": file.name, "digest": digest}
        scores.write_manifest()
        values = np.concatenate([one.log_probs for one in scored])
        right = np.concatenate([one.tops == np.array(each.answer) for one, each in zip(scored, examples, strict=True)])
        yield (
            f"{file}: {len(examples):,} records, {len(values):,} tokens; mean log-probability {values.mean():.3f}, "
            f"{right.mean():.1%} are the assistant's likeliest"
        )


def _packed(examples: Sequence[Example], scored: Sequence[Scored]) -> dict[str, np.ndarray]:
    return {
        "tokens": np.concatenate([np.array(one.prompt + one.answer, np.int32) for one in examples]),
        "prompt_lengths": np.array([len(one.prompt) for one in examples], np.int32),
        "answer_lengths": np.array([len(one.answer) for one in examples], np.int32),
        "log_probs": np.concatenate([one.log_probs.astype(np.float32) for one in scored]),
        "tops": np.concatenate([one.tops.astype(np.int32) for one in scored]),
    }


def _unpacked(tensors: dict[str, np.ndarray]) -> list[ScoredExample]:
    tokens, prompts, answers, log_probs, tops = (tensors[name] for name in _TENSORS)
    if len(prompts) != len(answers) or len(tokens) != prompts.sum() + answers.sum():
        raise ValueError("its lengths do not add up")
    if not len(log_probs) == len(tops) == answers.sum() or np.isnan(log_probs).any() or (log_probs > 1e-3).any():
        raise ValueError("it holds other numbers than log-probabilities of the answers' tokens")
    found, token, answer = [], 0, 0
    for prompt_length, answer_length in zip(prompts.tolist(), answers.tolist(), strict=True):
        middle, end = token + prompt_length, token + prompt_length + answer_length
        example = Example(tuple(tokens[token:middle].tolist()), tuple(tokens[middle:end].tolist()))
        part = slice(answer, answer + answer_length)
        found.append(ScoredExample(example, Scored(log_probs[part], tops[part])))
        token, answer = end, answer + answer_length
    return found
