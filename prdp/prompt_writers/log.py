"""The answers of a writer on disk, so that a killed command loses those alone that were under way."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from prdp.prompt_writers.base import Answer
from prdp.support.json_lines import json_line, read_json_lines
from prdp.support.storage import open_to_append, write_atomically

ANSWERS_FILE = "answers.jsonl"


@dataclass(frozen=True)
class Answered:
    """An answer in its round, which is of requests that were made at once.

    Attributes:
        first, size: number of the first request of its round, and how many there are.
        number: of its request.
        writer: its name.
        answer: what was answered.
    """

    first: int
    size: int
    number: int
    writer: str
    answer: Answer


class AnswerLog:
    """Answers in the order in which they came, a JSON line each.

    Args:
        folder: that there is.

    Raises:
        ValueError: a line other than the last is damaged; names the file and the line.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / ANSWERS_FILE
        self.answered = read_json_lines(self.path, _parsed, cut_off=True) if self.path.exists() else []
        self._file: TextIO | None = None

    def write(self, entry: Answered) -> None:
        """Append one, whole on disk when this returns."""
        if self._file is None:
            # What a killed process left half-written goes.
            write_atomically(self.path, "".join(map(_line, self.answered)).encode())
            self._file = open_to_append(self.path)
        self._file.write(_line(entry))
        self._file.flush()
        self.answered.append(entry)

    def close(self) -> None:
        """Nothing is written afterwards."""
        if self._file is not None:
            self._file.close()


def _line(entry: Answered) -> str:
    return json_line(
        {
            "round": [entry.first, entry.size],
            "request": entry.number,
            "writer": entry.writer,
            "answer": entry.answer.text,
            "cut": entry.answer.cut,
        }
    )


def _parsed(value: Any) -> Answered:
    first, size = value["round"]
    entry = Answered(first, size, value["request"], value["writer"], Answer(value["answer"], value["cut"]))
    if not isinstance(entry.answer.text, str) or not first <= entry.number < first + size:
        raise ValueError("it is no answer to a request of its round")
    return entry
