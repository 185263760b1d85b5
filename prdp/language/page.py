"""A page with texts coloured by who wrote them: self-contained, nothing loads from elsewhere."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

import prdp
from prdp.language.comparison import Row
from prdp.language.decoding import Answer
from prdp.language.records import Record
from prdp.reports.report_html import document

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


def coloured(tokenizer: Any, answer: Answer) -> str:
    """An answer as HTML: what the assistant wrote is marked; each part tells its deferral."""
    parts = []
    for by_assistant, group in itertools.groupby(pieces(tokenizer, answer), key=lambda piece: piece[1]):
        told = list(group)
        text = escape("".join(text for text, _, _ in told))
        shown = ", ".join(f"{deferral:.2f}" for _, _, deferral in told)
        parts.append(f'<span class="{"asked" if by_assistant else "own"}" title="{shown}">{text}</span>')
    return f'<div class="text">{"".join(parts)}</div>'


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
    lead = (
        "The small model writes; what is marked was left to the assistant. Hover over a part to read the probability "
        "of deferral at each of its tokens."
    )
    body = [f"<header><h1>{escape(title)}</h1></header>", f'<p class="lead">{lead}</p>', _table(rows, metric)]
    body += [_record(tokenizer, record, answer) for record, answer in zip(records, answers, strict=True)]
    body.append(f"<footer>Made by prdp {escape(prdp.__version__)}. This page loads nothing from elsewhere.</footer>")
    return document(title, body, _STYLE)


def _record(tokenizer: Any, record: Record, answer: Answer) -> str:
    wrong = record.answer is not None and answer.text.split() != record.answer.split()
    wanted = f'<div class="wanted">wanted: {escape(record.answer or "")}</div>' if wrong else ""
    facts = f"{len(answer.tokens)} tokens, {sum(answer.by_assistant)} of the assistant, in {answer.calls} calls"
    return (
        f'<section class="panel record"><div class="prompt">{escape(record.prompt)}</div>{coloured(tokenizer, answer)}'
        f'{wanted}<div class="facts">{facts}</div></section>'
    )


def _table(rows: Sequence[Row], metric: str) -> str:
    if not rows:
        return ""
    lines = "".join(
        f"<tr><td>{escape(one.name)}</td><td>{one.metric:.3f} <span class='ci'>± {one.interval:.3f}</span></td>"
        f"<td>{one.rate:.3f}</td><td>{one.calls:.1f}</td></tr>"
        for one in rows
    )
    return (
        f'<section class="panel scroll"><table><thead><tr><th></th><th>{escape(metric)}</th><th>deferred</th>'
        f"<th>calls a text</th></tr></thead><tbody>{lines}</tbody></table></section>"
    )
