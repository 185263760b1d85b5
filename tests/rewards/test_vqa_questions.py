"""What metadata may hold, and what answers add up to."""

from __future__ import annotations

from typing import Any

import pytest

from prdp.rewards.vqa_questions import Question, questions_of, with_dependencies


def ask(number: int, *parents: int, **others: Any) -> dict[str, Any]:
    return {"id": number, "question": f"question {number}?", "parents": list(parents), **others}


def test_a_question_counts_only_when_all_it_builds_on_is_there() -> None:
    # Is there a cat (1)? Is it red (2, on 1)? Is there a dog (3)? Is the cat on the dog (4, on 1 and 3)?
    questions = questions_of("p", {"questions": [ask(1), ask(2, 1), ask(3), ask(4, 1, 3)]})
    assert with_dependencies(questions, [1, 1, 1, 1]) == [1, 1, 1, 1]
    assert with_dependencies(questions, [0, 1, 1, 1]) == [0, 0, 1, 0]
    assert with_dependencies(questions, [1, 1, 0, 1]) == [1, 1, 0, 0]
    assert with_dependencies(questions, [0.9, 0.3, 0.49, 0.8]) == [0.9, 0.3, 0.49, 0]


def test_a_parent_counts_by_its_own_answer_whatever_its_parents_got() -> None:
    # No cat (1), yet the cat is red (2, on 1) and its red is dark (3, on 2): only 2 is taken back.
    questions = questions_of("p", {"questions": [ask(3, 2), ask(2, 1), ask(1)]})
    assert [question.number for question in questions] == ["3", "2", "1"]
    assert with_dependencies(questions, [1, 1, 0]) == [1, 0, 0]


@pytest.mark.parametrize(("correct", "expected"), [([1, 1], [1, 1]), ([0, 1], [0, 0]), ([1, 0], [0, 0])])
def test_parents_may_form_a_circle(correct: list[float], expected: list[float]) -> None:
    questions = questions_of("p", {"questions": [ask(1, 2), ask(2, 1)]})
    assert with_dependencies(questions, correct) == expected


def test_defaults_are_yes_out_of_yes_and_no_and_no_parents() -> None:
    entries = [{"question": " A cat? "}, ask(7, 0, choices=["two", "3"], answer="3")]
    first, second = questions_of("p", {"questions": entries})
    assert first == Question("1", "A cat?", ("yes", "no"), "yes", ())
    assert second == Question("7", "question 7?", ("two", "3"), "3", ())


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "'a cat' has no questions in its metadata"),
        ({"questions": []}, "has no questions"),
        ({"questions": "Is there a cat?"}, "has no questions"),
        ({"questions": [{"text": "?"}]}, "question 1 is {'text': '\\?'}, expected a mapping with a text 'question'"),
        ({"questions": [ask(1, 5)]}, "question 1 has the parent 5, there are only 1"),
        ({"questions": [ask(1), ask(1)]}, "two of its questions have the same id"),
        ({"questions": [ask(1, answer="blue")]}, "has the answer 'blue', .* here yes, no"),
    ],
)
def test_bad_questions_are_named(metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        questions_of("a cat", metadata)


def test_a_wrong_answer_takes_along_what_builds_on_it_where_that_is_asked_for() -> None:
    entries: list[dict[str, Any]] = [{"id": number, "question": "q", "parents": [number - 1]} for number in range(1, 5)]
    questions = questions_of("p", {"questions": entries})
    assert with_dependencies(questions, [0, 1, 1, 1]) == [0, 0, 1, 1]
    assert with_dependencies(questions, [0, 1, 1, 1], cascade=True) == [0, 0, 0, 0]
    assert with_dependencies(questions, [1, 1, 0.2, 1], cascade=True) == [1, 1, 0.2, 0]
    # A question that stands before its parent is decided by the parent's own answer.
    swapped = [questions[0], questions[2], questions[1]]
    assert with_dependencies(swapped, [0, 1, 1], cascade=True) == [0, 1, 0]
