"""What a writer is: text in, text out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from prdp.prompt_writers.scenes import Scenes
from prdp.support.errors import ResumableError


class WriterError(ResumableError):
    """A writer gave no answer; what was written before is kept, and the same command goes on."""


@dataclass(frozen=True)
class Request:
    """One request for more prompts.

    Attributes:
        number: of all requests, from 0.
        text: rules, then examples numbered from 1, and the number to continue at, on a line of its own.
        first: that number.
        count: prompts that are asked for.
        seed: of the request; a writer that draws by itself draws by it.
        scenes: of a skill of the shapes world.
    """

    number: int
    text: str
    first: int
    count: int
    seed: int
    scenes: Scenes | None = None


@dataclass(frozen=True)
class Answer:
    """What a writer answered.

    Attributes:
        text: as it came; the number to continue at is put before it where the writer went on behind that.
        cut: whether it was cut off at the longest length there is, so that its last line is not whole.
    """

    text: str
    cut: bool = False


class Writer(Protocol):
    """Writes numbered lists.

    Attributes:
        name: as it appears in the metadata of prompts.
        at_once: requests that it takes at a time.

    A class may have a class method `check(**arguments)`, which is called before anything long starts and raises
    ValueError, and `needs_scenes = True` where it writes for skills with scenes alone.
    """

    name: str
    at_once: int

    def answers(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        """Place in `requests` and answer, as they come, in any order.

        Raises:
            WriterError: no answer, after retries where they make sense; the answers that there are have been given.
        """
        ...


def continued(text: str, first: int) -> str:
    """The answer of a writer that goes on behind 'first.', with that number where it has none of its own."""
    return text if re.match(r"\s*\d+\s*[.):]", text) else f"{first}. {text.lstrip()}"
