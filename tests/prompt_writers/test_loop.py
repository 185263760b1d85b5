"""The loop with writers of a test: what is asked, what is kept, when it gives up, and how it goes on."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from prdp.prompt_writers.base import Answer, Request, WriterError
from prdp.prompt_writers.log import AnswerLog
from prdp.prompt_writers.loop import Pool, prompts_of, report, write
from prdp.prompt_writers.settings import SkillConfig, WriteConfig
from prdp.support.errors import StartError

SEEDS = ["one fox in the snow", "two bees on a rose", "three cats and a hat"]
SKILL = SkillConfig(name="animals", rules=["At most ten words."], seeds=SEEDS)
CONFIG = WriteConfig(skill=SKILL, writer={}, rules=["Be plain."], count=6, per_request=3, barren=3, output="x.jsonl")


class Scripted:
    """Answers by a function of the request's number; the order within a round is turned around."""

    name = "scripted"

    def __init__(self, script: Callable[[int], str | None], at_once: int = 1) -> None:
        self.script, self.at_once = script, at_once
        self.asked: list[Request] = []

    def answers(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        self.asked += requests
        for place, request in reversed(list(enumerate(requests))):
            text = self.script(request.number)
            if text is None:
                raise WriterError("the writer is away")
            yield place, Answer(text)


def fresh(number: int) -> str:
    """Three prompts that share no words with others."""
    return "\n".join(f"{place}. {' '.join(f'w{number}x{place}x{k}' for k in range(5))}" for place in (4, 5, 6))


def run(folder: Path, writer: Scripted, **changes: Any) -> Pool:
    log = AnswerLog(folder)
    try:
        return write(dataclasses.replace(CONFIG, **changes), lambda: writer, log, lambda text: None)
    finally:
        log.close()


def examples(request: Request) -> list[str]:
    return re.findall(r"^[123]\. (.*)$", request.text, re.MULTILINE)


def test_a_request_shows_rules_and_examples_and_ends_at_the_next_number(tmp_path: Path) -> None:
    writer = Scripted(fresh)
    run(tmp_path, writer)
    first = writer.asked[0]
    assert sorted(examples(first)) == sorted(SEEDS)
    assert first.text.startswith("Write 3 more descriptions")
    assert first.text.index("* Be plain.") < first.text.index("* At most ten words.") < first.text.index("1. ")
    assert first.text.endswith("\n4.")
    assert (first.first, first.count, first.number) == (4, 3, 0)


def test_the_pool_grows_so_that_later_examples_are_prompts_that_were_written(tmp_path: Path) -> None:
    writer = Scripted(fresh)
    pool = run(tmp_path, writer, count=30)
    shown = {example for request in writer.asked for example in examples(request)}
    assert shown - {*SEEDS} <= {*pool.kept}
    assert len(shown - {*SEEDS}) > 5
    assert len({request.seed for request in writer.asked}) == len(writer.asked)
    other, again = Scripted(fresh), Scripted(fresh)
    for name in ("other", "again"):
        (tmp_path / name).mkdir()
    run(tmp_path / "other", other, count=30, seed=1)
    assert [examples(request) for request in other.asked] != [examples(request) for request in writer.asked]
    assert run(tmp_path / "again", again, count=30).kept == pool.kept
    assert again.asked == writer.asked


def test_what_is_dropped_is_counted_by_reason(tmp_path: Path) -> None:
    answers = [
        "Sure:\n4. One fox in  the snow\n5. one fox sleeps in deep cold snow\n6. a b c d e\n",
        "4. a b c d f\n5.\n6. a b c d e f\n7. new words alone",
        fresh(2),
    ]
    writer = Scripted(lambda number: answers[number])
    pool = run(tmp_path, writer, count=5)
    kept = ["one fox sleeps in deep cold snow", "a b c d e", "a b c d f", "new words alone"]
    assert pool.kept[:4] == kept, "an F of exactly 0.8 is not above it"
    assert +pool.dropped == {"stray": 1, "repeated": 1, "empty": 1, "similar": 1}
    assert [text for text, _ in prompts_of(pool)] == [*kept, pool.kept[4]]
    assert {tuple(metadata.items()) for _, metadata in prompts_of(pool)} == {
        (("skill", "animals"), ("writer", "scripted"))
    }
    told = report(pool)
    assert told.startswith("skill animals: 5 prompts of 3 requests (2 more are left over)\n")
    assert "dropped, too similar to one: 1\n" in told


def test_what_no_reader_of_prompts_takes_is_dropped(tmp_path: Path) -> None:
    halved = "4. a red\x00 fox\n5. \x1b[31mred\n6. half \ud83d of a pair"
    answers = [halved, f"4. {'x' * 2**17}y\n5. plain fox", fresh(2)]
    pool = run(tmp_path, Scripted(lambda number: answers[number]), count=2)
    assert pool.kept[0] == "plain fox" and pool.dropped["unreadable"] == 4
    assert run(tmp_path, Scripted(lambda number: None), count=2).kept == pool.kept, "the log is read back"


def test_it_gives_up_after_barren_requests_and_tells_what_was_answered(tmp_path: Path) -> None:
    writer = Scripted(lambda number: fresh(number) if number == 1 else "I cannot\nhelp with that.")
    message = (
        r"^writer: 3 requests in a row brought no new prompt \(3 of 6 were written before; count=3 makes a file of "
        r"these; dropped in all: 8 stray\)\. The last answer: I cannot\\nhelp with that\.$"
    )
    with pytest.raises(StartError, match=message):
        run(tmp_path, writer)
    assert len(writer.asked) == 5, "one barren, one that bore, three barren"
    helpful = Scripted(fresh)
    assert len(run(tmp_path, helpful).kept) == 6
    assert [request.number for request in helpful.asked] == [5]
    with pytest.raises(StartError, match=r"The last answer: nothing$"):
        run(tmp_path, Scripted(lambda number: ""), count=30)


def test_only_what_was_not_answered_is_asked_again(tmp_path: Path) -> None:
    """A round of three of which two were answered: its third shows the pool of before, as if nothing had happened."""
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    undisturbed = Scripted(fresh, at_once=3)
    expected = run(tmp_path / "whole", undisturbed, count=18)
    killed = Scripted(lambda number: None if number == 3 else fresh(number), at_once=3)
    with pytest.raises(WriterError):
        run(tmp_path / "killed", killed, count=18)
    with open(tmp_path / "killed" / "answers.jsonl", "a") as file:
        file.write('{"round": [3, 3], "requ')  # what a kill leaves
    resumed = Scripted(fresh, at_once=2)
    assert run(tmp_path / "killed", resumed, count=18).kept == expected.kept
    assert resumed.asked == undisturbed.asked[3:4]
    assert run(tmp_path / "killed", Scripted(lambda number: None), count=18).kept == expected.kept, "none is asked"


def test_a_larger_count_goes_on(tmp_path: Path) -> None:
    few = run(tmp_path, Scripted(fresh), count=4)
    more = Scripted(fresh)
    many = run(tmp_path, more, count=9)
    assert many.kept[: len(few.kept)] == few.kept
    assert [request.number for request in more.asked] == [2]
    assert len(list(prompts_of(run(tmp_path, more, count=2)))) == 2


@pytest.mark.parametrize(
    "line",
    ["{", '{"round": [0, 1]}', '{"round": [0, 1], "request": 1, "writer": "a", "answer": "b", "cut": false}'],
)
def test_a_damaged_log_is_named_by_its_line(tmp_path: Path, line: str) -> None:
    run(tmp_path, Scripted(fresh))
    file = tmp_path / "answers.jsonl"
    file.write_text(f"{line}\n{file.read_text()}")
    with pytest.raises(ValueError, match=r"answers\.jsonl line 1 is damaged"):
        AnswerLog(tmp_path)
