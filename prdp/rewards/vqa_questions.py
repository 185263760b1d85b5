"""Questions about an image: what a prompt's metadata must hold, and what the answers add up to.

TIFA (Hu et al., 2023) takes the mean over questions. DSG (Cho et al., 2024) adds that a question says nothing where
what it builds on is not there: it counts as answered wrongly when one of its parents was. What counts of a parent is
its own answer, whatever its parents got, as in the authors' code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

YES_NO = ("yes", "no")


@dataclass(frozen=True)
class Question:
    """One question about an image.

    Attributes:
        number: its id, as text; 'parents' refer to it.
        text: the question.
        choices: possible answers.
        answer: the right one of them.
        parents: ids of questions that must be answered rightly for this one to count; they may form a circle.
    """

    number: str
    text: str
    choices: tuple[str, ...] = YES_NO
    answer: str = "yes"
    parents: tuple[str, ...] = ()


def questions_of(prompt: str, metadata: Mapping[str, Any]) -> tuple[Question, ...]:
    """The questions in a prompt's metadata, in their order.

    Args:
        prompt: for messages.
        metadata: {"questions": [{"question": text, "id": any, "parents": [ids], "choices": [texts], "answer": text}]};
            all but the question may be left out: then ids count from 1, and the right answer is yes out of yes and no.

    Raises:
        ValueError: naming the prompt and what is missing or unknown.
    """
    entries = metadata.get("questions")
    if not isinstance(entries, Sequence) or isinstance(entries, str) or not entries:
        raise ValueError(
            f"prompt {prompt!r} has no questions in its metadata, expected "
            '"questions": [{"id": 1, "question": "Is there a cat?", "parents": []}, ...]; '
            "metadata_columns=[questions] of a prompt source takes them out of its file"
        )
    questions = [_question(prompt, place, entry) for place, entry in enumerate(entries, 1)]
    by_number = {question.number: question for question in questions}
    if len(by_number) < len(questions):
        raise ValueError(f"prompt {prompt!r}: two of its questions have the same id")
    for question in questions:
        strangers = [parent for parent in question.parents if parent not in by_number]
        if strangers:
            raise ValueError(
                f"prompt {prompt!r}: question {question.number} has the parent {strangers[0]}, there are only "
                f"{', '.join(by_number)}"
            )
    return tuple(questions)


def with_dependencies(
    questions: Sequence[Question], correct: Sequence[float], cascade: bool = False
) -> list[float]:
    """The scores, 0 where that of a parent is below one half, in the order of the questions.

    Args:
        questions: of one prompt.
        correct: 1 for a right answer, 0 for a wrong one, or the probability of the right one.
        cascade: a question that was set to 0 counts as a wrong parent of those after it, as in DPG-Bench's code.
    """
    if cascade:
        found = {question.number: value for question, value in zip(questions, correct, strict=True)}
        for question in questions:
            if any(found[parent] < 0.5 for parent in question.parents):
                found[question.number] = 0.0
        return list(found.values())
    own = {question.number: value for question, value in zip(questions, correct, strict=True)}
    return [
        own[question.number] if all(own[parent] >= 0.5 for parent in question.parents) else 0.0
        for question in questions
    ]


def _question(prompt: str, place: int, entry: Any) -> Question:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("question"), str) or not entry["question"].strip():
        raise ValueError(f"prompt {prompt!r}: question {place} is {entry!r}, expected a mapping with a text 'question'")
    choices = tuple(str(choice) for choice in entry.get("choices") or YES_NO)
    answer = str(entry.get("answer") or "yes")
    if answer not in choices or len(set(choices)) < 2:
        raise ValueError(
            f"prompt {prompt!r}: question {place} has the answer {answer!r}, which must be one of at least two "
            f"choices, here {', '.join(choices)}"
        )
    # In DSG's own files a parent of 0 means that there is none.
    parents = tuple(str(parent) for parent in entry.get("parents") or () if str(parent) != "0")
    return Question(str(entry.get("id", place)), entry["question"].strip(), choices, answer, parents)
