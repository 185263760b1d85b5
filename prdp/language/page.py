"""A page with texts coloured by who wrote them: self-contained, nothing loads from elsewhere."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import prdp
from prdp.language.comparison import Row
from prdp.language.decoding import Answer
from prdp.language.records import Record
from prdp.reports.report_html import document
from prdp.reports.templates import render

_STYLE = """
.text{font:15px/2 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;white-space:pre-wrap;overflow-wrap:anywhere}
.text span{border-radius:4px;padding:2px 0}
.text .asked{background:var(--s1-soft,#cfe3ff);color:#10233f;font-weight:600;box-shadow:0 1px 0 #4a7fc1}
.record{padding:16px 20px;margin-top:14px}
.record .prompt{color:var(--muted);font-size:13px;white-space:pre-wrap;overflow-wrap:anywhere;margin-bottom:8px}
.record .facts{display:block;color:var(--muted);font-size:13px;margin-top:8px}
.record .wanted{color:var(--down);font-size:13px;margin-top:4px}
"""


def pieces(tokenizer: Any, answer: Answer) -> Iterator[tuple[str, bool, float]]:
    """The text of an answer in parts, a part a token: text, whether the assistant wrote it, and its deferral.

    A token's text is what the whole decodes to more than without it, so that the parts together are the text. Letters
    of several tokens stand with the last of them.
    """
    before = ""
    for place, (by_assistant, deferral) in enumerate(zip(answer.by_assistant, answer.deferral, strict=True), start=1):
        text = tokenizer.decode(answer.tokens[:place], skip_special_tokens=True)
        if text.endswith("\N{REPLACEMENT CHARACTER}") and place < len(answer.tokens):
            continue
        yield text[len(before) :], by_assistant, deferral
        before = text


def coloured(tokenizer: Any, answer: Answer) -> list[tuple[str, bool, str]]:
    """An answer in the parts that one model wrote: text, whether the assistant wrote it, and its deferrals as text."""
    parts = []
    for by_assistant, group in itertools.groupby(pieces(tokenizer, answer), key=lambda piece: piece[1]):
        told = list(group)
        deferrals = ", ".join(f"{deferral:.2f}" for _, _, deferral in told)
        parts.append(("".join(text for text, _, _ in told), by_assistant, deferrals))
    return parts


def page(
    title: str,
    tokenizer: Any,
    records: Sequence[Record],
    answers: Sequence[Answer],
    rows: Sequence[Row] = (),
    metric: str = "",
) -> str:
    """The whole document: a table of rows, then every text.

    Args:
        records: with what was wanted, where that is known.
        answers: to them.
        rows, metric: of a comparison, where one was made.
    """
    body = render(
        "language/answers.html",
        title=title,
        rows=rows,
        metric=metric,
        records=[_record(tokenizer, record, answer) for record, answer in zip(records, answers, strict=True)],
        version=prdp.__version__,
    )
    return document(title, [body], _STYLE)


def _record(tokenizer: Any, record: Record, answer: Answer) -> dict[str, Any]:
    wrong = record.answer is not None and answer.text.split() != record.answer.split()
    return {
        "prompt": record.prompt,
        "parts": coloured(tokenizer, answer),
        "wanted": record.answer if wrong else None,
        "tokens": len(answer.tokens),
        "of_assistant": sum(answer.by_assistant),
        "calls": answer.calls,
    }
