"""Lists as writers write them: which lines are items, and what becomes of the rest."""

from __future__ import annotations

import pytest

from prdp.prompt_writers.base import continued
from prdp.prompt_writers.numbered_list import parse_list


@pytest.mark.parametrize(
    ("answer", "texts", "stray"),
    [
        ("4. a fox\n5. a bee\n\n6. two  cats ", ("a fox", "a bee", "two cats"), 0),
        ("Sure! Here are more:\n4. a fox\n5. a bee\nAnything else?", ("a fox", "a bee"), 2),
        ("1. shown\n2. shown\n3. shown\n4. new", ("new",), 3),
        ("4. a\n4. again\n3. back\n5. b", ("a", "b"), 2),
        ("4. a\n7. c", ("a", "c"), 0),
        ("4. a\n2024. a year is no number of the list\n5. b", ("a", "b"), 1),
        ("4) a\n5: b\n**6.** c\n- 7. d\n**8. e**", ("a", "b", "c", "d", "e"), 0),
        ('4. "a fox"\n5. “a bee”\n6. "a" and "b"\n7. \'tis a cat', ("a fox", "a bee", '"a" and "b"', "'tis a cat"), 0),
        ("4.\n5. \n6. 3 cats", ("", "", "3 cats"), 0),
        ("4.a fox", ("a fox",), 0),
        ("a fox, a bee", (), 1),
        ("", (), 0),
        (" \r\n4. a\r\n5. b", ("a", "b"), 0),
    ],
)
def test_items_of_an_answer(answer: str, texts: tuple[str, ...], stray: int) -> None:
    parsed = parse_list(answer, first=4)
    assert (parsed.texts, parsed.stray) == (texts, stray)


def test_the_last_line_of_an_answer_that_was_cut_off_is_no_item() -> None:
    assert parse_list("4. a fox\n5. a bee in a", 4, cut=True).texts == ("a fox",)
    assert parse_list("", 4, cut=True).texts == ()


def test_a_writer_that_goes_on_behind_the_number() -> None:
    assert continued(" a fox\n5. a bee", 4) == "4. a fox\n5. a bee"
    assert continued("4. a fox\n5. a bee", 4) == "4. a fox\n5. a bee"
    assert continued("", 4) == "4. "
