"""DSG-1k: prompts with yes/no questions that depend on each other (Cho et al., ICLR 2024).

The file has a record a question: item_id, text, proposition_id, dependency, question_natural_language and more.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import Any

from prdp.prompts.cache import Cleaning, cached_table
from prdp.prompts.csv_file import csv_records
from prdp.prompts.files import source_files
from prdp.prompts.records import Columns
from prdp.prompts.table import PromptTable, Row

_log = logging.getLogger(__name__)
_QUESTION = ("item_id", "proposition_id", "dependency", "category_broad", "question_natural_language")


class DsgPrompts(PromptTable):
    """One prompt an item, its questions in the metadata.

    Metadata: item_id; category, the item's collection, such as 'whoops'; questions, a list of {"id": int, "question":
    text, "parents": ids of the questions that must be answered yes for this one to count, "category": such as
    'attribute'}. A parent may come after its child, and parents may form a circle. The published list has some
    dependencies that name the question itself or one that is not there; these are left out, with a count in the log. An
    item with a dependency that is no number has none at all, as in the authors' code.

    Args:
        path: of the CSV file.

    Raises:
        ValueError: no such file or column, a proposition_id that is no number or comes twice, records of an item that
            disagree on its text.
    """

    def __init__(self, path: str) -> None:
        files = source_files(path)
        choice = Columns("text", None, _QUESTION)

        def rows() -> Iterator[Row]:
            items: dict[str, Row] = {}
            for file in files:
                for record, place in csv_records(file, None, None, None, "utf-8", choice):
                    item = items.setdefault(record["item_id"], _item(record, place))
                    if item.text != record["text"]:
                        raise ValueError(f"{place}: item {record['item_id']} has another text than at {item.place}")
                    item.metadata["questions"].append(_question(record, item, place))
            left_out = sum(_drop_strays(item.metadata["questions"]) for item in items.values())
            if left_out:
                _log.warning(
                    "%s: %d dependencies name no other question, or are of an item where one is no number; left out",
                    path,
                    left_out,
                )
            yield from items.values()

        super().__init__(cached_table("dsg", files, {"dependencies": "all or none"}, rows, Cleaning()))


def _item(record: dict[str, Any], place: str) -> Row:
    name = record["item_id"]
    metadata = {"item_id": name, "category": re.sub(r"[_-]?\d+$", "", name) or name, "questions": []}
    return Row(record["text"], metadata, place)


def _question(record: dict[str, Any], item: Row, place: str) -> dict[str, Any]:
    if not record["proposition_id"].strip().isdecimal():
        raise ValueError(f"{place}: proposition_id is {record['proposition_id']!r}, expected a number")
    number = int(record["proposition_id"])
    if any(question["id"] == number for question in item.metadata["questions"]):
        raise ValueError(f"{place}: item {record['item_id']} has question {number} twice")
    return {
        "id": number,
        "question": record["question_natural_language"].strip(),
        "parents": [part.strip() for part in record["dependency"].split(",") if part.strip() not in ("", "0")],
        "category": record["category_broad"].strip(),
    }


def _drop_strays(questions: list[dict[str, Any]]) -> int:
    """Turn parents into numbers, without those that name no other question; the number left out.

    Where one of an item's parents is no number, all of that item's are left out.
    """
    known = {str(question["id"]) for question in questions}
    readable = all(part.isdecimal() for question in questions for part in question["parents"])
    left_out = 0
    for question in questions:
        others = known - {str(question["id"])} if readable else set()
        parents = [part for part in question["parents"] if part in others]
        left_out += len(question["parents"]) - len(parents)
        question["parents"] = [int(part) for part in parents]
    return left_out
