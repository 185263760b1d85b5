"""Answers of servers that speak OpenAI's chat or completions protocol."""

from __future__ import annotations

from prdp.support.json_lines import load_json

APIS = {"chat": "/chat/completions", "completions": "/completions"}


def choice(body: bytes, where: str, api: str) -> tuple[str, bool]:
    """Text of the first choice, and whether it was cut off at the longest length.

    Args:
        where: the address, for messages.
        api: of `APIS`.

    Raises:
        ValueError: an answer that has none; shows its beginning.
    """
    expected = "choices[0].message.content" if api == "chat" else "choices[0].text"
    try:
        first = load_json(body)["choices"][0]
        text = first["message"]["content"] if api == "chat" else first["text"]
    except (ValueError, TypeError, KeyError, IndexError):
        text = None
    if not isinstance(text, str):
        shown = body[:200].decode("utf-8", "replace")
        raise ValueError(f"{where} answers with something else than {expected}: {shown!r}")
    return text, first.get("finish_reason") == "length"
