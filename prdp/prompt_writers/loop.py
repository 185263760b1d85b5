"""Self-Instruct: a pool of prompts that grows by what a writer makes of examples from it.

References:
    Wang et al., Self-Instruct, 2023, arXiv 2212.10560; for pictures, by skills, Li et al., SELMA, 2024,
    arXiv 2403.06952.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from prdp.prompt_writers.base import Answer, Writer
from prdp.prompt_writers.log import Answered, AnswerLog
from prdp.prompt_writers.numbered_list import parse_list
from prdp.prompt_writers.requests import request_for
from prdp.prompt_writers.rouge import SimilarityPool
from prdp.prompt_writers.settings import EXAMPLES, WriteConfig, scenes_of
from prdp.prompts.table import LONGEST_PROMPT
from prdp.support.errors import StartError
from prdp.support.printable import printable

REASONS = {
    "repeated": "an earlier prompt or a seed, but for case and blanks",
    "similar": "too similar to one",
    "off_skill": "not a prompt of the skill",
    "empty": "nothing behind the number",
    "unreadable": "with characters that no text has, or longer than a prompt may be",
    "stray": "a line that is not the next of the list",
}
"""Why something of an answer was dropped."""
_SHOWN = 400
_REPLACEMENT = "\ufffd"
"""Unicode's sign for what could not be read."""


@dataclass
class Pool:
    """Prompts that were kept, in order; similar to none of them, and to none of the skill's seeds.

    Attributes:
        config: says what is kept.
        kept: prompts.
        writers: who wrote each.
        dropped: reason -> how many.
        requests: that were answered.
    """

    config: WriteConfig
    kept: list[str] = field(default_factory=list)
    writers: list[str] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    requests: int = 0

    def __post_init__(self) -> None:
        self.scenes = scenes_of(self.config.skill)
        self._alike = SimilarityPool(self.config.skill.similarity)
        self._seen = set[str]()
        for seed in self.config.skill.seeds:
            self._add(seed)

    @property
    def examples(self) -> list[str]:
        """All that requests may show."""
        return [*self.config.skill.seeds, *self.kept]

    def take(self, answer: Answer, writer: str) -> int:
        """Take in what is new of a writer's answer; how much that is."""
        parsed = parse_list(answer.text, EXAMPLES + 1, answer.cut)
        self.requests += 1
        self.dropped["stray"] += parsed.stray
        before = len(self.kept)
        for text in parsed.texts:
            reason = self._reason(text)
            if reason is None:
                self._add(text)
                self.kept.append(text)
                self.writers.append(writer)
            else:
                self.dropped[reason] += 1
        return len(self.kept) - before

    def _reason(self, text: str) -> str | None:
        if not text:
            return "empty"
        if len(text) > LONGEST_PROMPT or any(map(_is_unreadable, text)):
            return "unreadable"
        if self.scenes is not None and self.scenes.problem(text) is not None:
            return "off_skill"
        if _plain(text) in self._seen:
            return "repeated"
        return "similar" if self._alike.similar(text) is not None else None

    def _add(self, text: str) -> None:
        self._seen.add(_plain(text))
        self._alike.add(text)


def write(config: WriteConfig, writer: Callable[[], Writer], log: AnswerLog, say: Callable[[str], None]) -> Pool:
    """Ask for prompts until there are `config.count`; what the log holds already is not asked for again.

    The requests of a round show examples of the pool as it was before the round, and their answers are taken in the
    order of the requests: which come first makes no difference.

    Args:
        writer: makes it, when there is something to be asked.
        log: of answers; new ones go there as they come.
        say: tells people how far it is.

    Raises:
        StartError: `config.barren` requests in a row brought nothing new.
        WriterError: the writer is away.
    """
    pool, barren = Pool(config), 0
    made: Writer | None = None
    rounds = _rounds(log.answered)
    while len(pool.kept) < config.count:
        first = pool.requests
        there = rounds.get(first, {})
        size = next(iter(there.values())).size if there else 0
        asked = not there or len(there) < size
        if asked:
            made = made or writer()
            size = size or made.at_once
            numbers = [number for number in range(first, first + size) if number not in there]
            requests = [request_for(config, number, pool.examples, pool.scenes) for number in numbers]
            for place, answer in made.answers(requests):
                there[numbers[place]] = Answered(first, size, numbers[place], made.name, _encodable(answer))
                log.write(there[numbers[place]])
        for number in range(first, first + size):
            new = pool.take(there[number].answer, there[number].writer)
            barren = 0 if new or not asked else barren + 1
            if barren >= config.barren:
                raise StartError(_gives_up(pool, barren, there[number].answer))
        if asked:
            say(f"{min(len(pool.kept), config.count):,} of {config.count:,} prompts after {pool.requests:,} requests")
    return pool


def report(pool: Pool) -> str:
    """What was kept and dropped, for people."""
    kept = min(len(pool.kept), pool.config.count)
    spare = f" ({len(pool.kept) - kept} more are left over)" if len(pool.kept) > kept else ""
    lines = [f"skill {pool.config.skill.name}: {kept:,} prompts of {pool.requests:,} requests{spare}"]
    lines += [f"  dropped, {words}: {pool.dropped[name]:,}" for name, words in REASONS.items() if pool.dropped[name]]
    return "\n".join(lines)


def prompts_of(pool: Pool) -> Iterator[tuple[str, dict[str, Any]]]:
    """The prompts with their metadata: skill and writer, and of the shapes world their scenes."""
    for text, writer in list(zip(pool.kept, pool.writers, strict=True))[: pool.config.count]:
        scene = pool.scenes.metadata(text) if pool.scenes is not None else {}
        yield text, {"skill": pool.config.skill.name, "writer": writer, **scene}


def _rounds(answered: list[Answered]) -> dict[int, dict[int, Answered]]:
    """Number of the first request of a round -> its answers by request."""
    rounds: dict[int, dict[int, Answered]] = {}
    for entry in answered:
        rounds.setdefault(entry.first, {})[entry.number] = entry
    return rounds


def _gives_up(pool: Pool, barren: int, last: Answer) -> str:
    shown = printable(last.text[:_SHOWN].strip()) or "nothing"
    dropped = ", ".join(f"{count:,} {name}" for name, count in pool.dropped.items() if count) or "nothing"
    there = f"; count={len(pool.kept)} makes a file of these" if pool.kept else ""
    return (
        f"writer: {barren} requests in a row brought no new prompt ({len(pool.kept):,} of {pool.config.count:,} were "
        f"written before{there}; dropped in all: {dropped}). The last answer: {shown}"
    )


def _encodable(answer: Answer) -> Answer:
    """With halves of surrogate pairs, which JSON can hold and UTF-8 cannot, replaced."""
    return dataclasses.replace(answer, text=answer.text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))


def _is_unreadable(letter: str) -> bool:
    return letter == _REPLACEMENT or unicodedata.category(letter) == "Cc"


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
