"""DSG's file of questions: grouping, dependencies, and what is refused."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from prdp.prompts.dsg import DsgPrompts

HEADER = (
    "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language\n"
)


def written(folder: Path, *records: str) -> str:
    (folder / "dsg.csv").write_text(HEADER + "".join(f"{record}\n" for record in records))
    return str(folder / "dsg.csv")


def test_questions_are_grouped_with_their_parents(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "whoops_5,a cat,cat,1,0,entity,whole,t,Is there a cat?",
        "drawtext_1,a sign,sign,1,0,entity,whole,t,Is there a sign?",
        'whoops_5,a cat,cat,2,"1, 3",attribute,color,t,Is the cat red?',
        "whoops_5,a cat,cat,3,0,entity,whole,t,Is there a dog?",
    )
    source = DsgPrompts(path)
    assert len(source) == 2
    assert source[0] == (
        "a cat",
        {
            "item_id": "whoops_5",
            "category": "whoops",
            "questions": [
                {"id": 1, "question": "Is there a cat?", "parents": [], "category": "entity"},
                {"id": 2, "question": "Is the cat red?", "parents": [1, 3], "category": "attribute"},
                {"id": 3, "question": "Is there a dog?", "parents": [], "category": "entity"},
            ],
        },
    )


def test_stray_dependencies_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(
        tmp_path,
        "tifa_1,a man,man,2,1,entity,whole,t,Is there a man?",
        'tifa_1,a man,man,3,"2, 9",relation,spatial,t,Does he look right?',
        'tifa_1,a man,man,4,"4,2",attribute,state,t,Is he old?',
    )
    with caplog.at_level(logging.WARNING):
        _, metadata = DsgPrompts(path)[0]
    assert [question["parents"] for question in metadata["questions"]] == [[], [2], [2]]
    assert "3 dependencies name no other question" in caplog.text


def test_an_item_with_a_dependency_that_is_a_word_has_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(
        tmp_path,
        "tifa_1,a man,man,1,0,entity,whole,t,Is there a man?",
        'tifa_1,a man,man,2,"1, right",relation,spatial,t,Does he look right?',
        "tifa_1,a man,man,3,1,attribute,state,t,Is he old?",
        "tifa_2,a dog,dog,1,0,entity,whole,t,Is there a dog?",
        "tifa_2,a dog,dog,2,1,attribute,state,t,Is it old?",
    )
    with caplog.at_level(logging.WARNING):
        source = DsgPrompts(path)
    parents = [[question["parents"] for question in source[item][1]["questions"]] for item in (0, 1)]
    assert parents == [[[], [], []], [[], [1]]]
    assert "3 dependencies name no other question" in caplog.text


def test_parents_in_a_circle_stay(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "drawtext_45,a sign,sign,1,2,entity,whole,t,Is there a sign?",
        "drawtext_45,a sign,sign,2,1,attribute,color,t,Is it white?",
    )
    assert [question["parents"] for question in DsgPrompts(path)[0][1]["questions"]] == [[2], [1]]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (["a_1,a cat,k,one,0,c,c,t,q"], "line 2: proposition_id is 'one', expected a number"),
        (["a_1,a cat,k,1,0,c,c,t,q", "a_1,a cat,k,1,0,c,c,t,q"], "line 3: item a_1 has question 1 twice"),
        (["a_1,a cat,k,1,0,c,c,t,q", "a_1,a dog,k,2,0,c,c,t,q"], r"item a_1 has another text than at .* line 2"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, records: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DsgPrompts(written(tmp_path, *records))


def test_another_file_is_refused_by_its_columns(tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("prompt\na cat\n")
    with pytest.raises(ValueError, match="no column 'text'; there are prompt"):
        DsgPrompts(str(tmp_path / "other.csv"))
