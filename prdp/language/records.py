"""What is learned from and decoded: prompts with the answers that are wanted, as text in files and as tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prdp.support.errors import StartError, start_up_checks
from prdp.support.json_lines import read_json_lines


@dataclass(frozen=True)
class Record:
    """A prompt and its answer.

    Attributes:
        prompt: text that stands before the answer, as it is; a chat template or a line feed at its end is part of it.
        answer: that is wanted; None where none is known.
    """

    prompt: str
    answer: str | None = None


@dataclass(frozen=True)
class Example:
    """A record in tokens.

    Attributes:
        prompt: tokens, with the one that begins texts where the tokenizer has one.
        answer: tokens, with the one that ends texts.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


def read_records(file: Path, with_answers: bool = False) -> list[Record]:
    """The records of a file of JSON lines: {"prompt": text, "answer": text}.

    Raises:
        StartError: a file that is not there, is empty or damaged, by line.
    """

    def parse(value: Any) -> Record:
        if not isinstance(value, dict):
            raise ValueError("it is no object with a prompt and an answer")
        prompt, answer = value["prompt"], value["answer"] if with_answers else value.get("answer")
        if not isinstance(prompt, str) or not ((answer is None and not with_answers) or isinstance(answer, str)):
            raise ValueError("prompt and answer must be text")
        if not prompt.strip() or (answer is not None and not answer.strip()):
            raise ValueError("the prompt or the answer is empty")
        return Record(prompt, answer)

    try:
        found = read_json_lines(file, parse)
    except FileNotFoundError:
        raise StartError(f"data={file}: there is no such file") from None
    except (ValueError, OSError) as error:
        raise StartError(f"data: {error}") from None
    if not found:
        raise StartError(f"data={file}: is empty")
    return found


def file_digest(file: Path) -> str:
    """Of a file's content, 16 hex digits of its SHA-256."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:16]


def encode_prompt(tokenizer: Any, prompt: str) -> tuple[int, ...]:
    """Tokens of a prompt; one that ends texts is taken off.

    Raises:
        ValueError: a prompt that has no token at all.
    """
    ids = list(tokenizer(prompt)["input_ids"])
    while ids and ids[-1] == tokenizer.eos_token_id:
        ids.pop()
    if not ids:
        raise ValueError(f"the prompt {prompt!r} has no tokens")
    return tuple(ids)


def encode(tokenizer: Any, record: Record) -> Example:
    """A record in tokens. Prompt and answer are cut into tokens apart, as they are when the answer is decoded."""
    assert record.answer is not None
    answer = tokenizer(record.answer, add_special_tokens=False)["input_ids"]
    return Example(encode_prompt(tokenizer, record.prompt), (*answer, tokenizer.eos_token_id))


def encode_all(
    tokenizer: Any, records: Sequence[Record], max_length: int | None, where: str = "data"
) -> list[Example]:
    """Records in tokens.

    Args:
        max_length: tokens of a record at most; None for any number.
        where: put before what is wrong, such as a key and a file.

    Raises:
        StartError: one that has no token, or is longer than `max_length`, by number.
    """
    examples = []
    for number, record in enumerate(records, start=1):
        with start_up_checks(f"{where}: record {number}"):
            one = encode(tokenizer, record)
        if max_length is not None and (length := len(one.prompt) + len(one.answer)) > max_length:
            raise StartError(f"{where}: record {number} has {length} tokens, more than the {max_length} that are read")
        examples.append(one)
    return examples
