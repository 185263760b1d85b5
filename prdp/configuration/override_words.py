"""Words of a command line that Hydra cannot read: what was probably meant, and how it is written."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from prdp.support.suggest import nearest

_KEY = r"[+~]*[A-Za-z_][\w./@-]*"
_ASSIGNED = re.compile(rf"({_KEY})=(.+)", re.DOTALL)
_OPTION = re.compile(r"--?([A-Za-z_][\w.-]*)(?:=(.*))?", re.DOTALL)
_COLON = re.compile(rf"({_KEY}):\s*(.*)", re.DOTALL)
_SPACED = re.compile(rf"({_KEY})\s*=?\s+(.+)|({_KEY})\s+=\s*(.+)", re.DOTALL)
_HOME = re.compile(rf"({_KEY}=)(~(?:/[^\s\"'(){{}}\[\],]*)?)")
_ENTRY = re.compile(r"""\s*(?:(["'])(.*?)\1|(.*?))\s*(?:,|$)""")
"""Of a list: within quotes, where a comma or the end follows them, or up to a comma."""


def home_quoted(word: str) -> str:
    """A word whose value begins with '~/', which Hydra takes in quotes only; any other as it is."""
    match = _HOME.fullmatch(word)
    return f"{match[1]}{quoted(match[2])}" if match else word


def quoted(value: str) -> str:
    """A text as Hydra reads it back, whatever it holds, but for a sign that is not to be resolved: ${."""
    mark = "'" if '"' in value and "'" not in value else '"'
    # A backslash counts for two only where it stands before a quote or at the end.
    escaped = re.sub(rf"(\\*)({mark}|\Z)", lambda found: found[1] * 2 + (f"\\{mark}" if found[2] else ""), value)
    return f"{mark}{escaped}{mark}"


def as_typed(key: str, value: str) -> str:
    """The word for a shell that sets a key to a text: quoted for Hydra, and then for the shell."""
    return shlex.quote(f"{key}={quoted(value)}")


def split_lists(words: Iterable[str], keys: Iterable[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Key -> entries of `key=[a,b]` for some keys, whatever signs the entries hold; and the other words.

    An entry with a comma stands in quotes.
    """
    lists: dict[str, list[str]] = {}
    rest, keys = [], set(keys)
    for word in words:
        key, separator, value = word.partition("=")
        if key not in keys or not separator:
            rest.append(word)
            continue
        inner = value.strip().removeprefix("[").removesuffix("]")
        entries = [match[2] or (match[3] or "").strip("'\"") for match in _ENTRY.finditer(inner)]
        lists[key] = [entry for entry in entries if entry]
    return lists, rest


def quoted_list(entries: Iterable[str]) -> str:
    """A list as Hydra reads it, whatever the entries hold."""
    escaped = ("'" + entry.replace("\\", "\\\\").replace("'", "\\'") + "'" for entry in entries)
    return f"[{','.join(escaped)}]"


def how_to_write(word: str, keys: Iterable[str]) -> str:
    """The end of a message about a word: how to write what was probably meant; empty when nothing is known.

    Args:
        word: as typed.
        keys: that there are, groups among them.
    """
    keys = list(keys)
    if match := _ASSIGNED.fullmatch(word):
        key, value = match[1], match[2]
        if value.startswith("="):
            return f": one sign is enough: {key}={value.lstrip('=')}"
        closing = {"[": "]", "{": "}"}.get(value[0], "")
        if closing and (closing not in value or value.endswith(closing)):
            return ""  # a list or a mapping was meant
        return f": quote the value for Hydra, and the word for the shell: {as_typed(key, value)}"
    if match := _OPTION.fullmatch(word):
        name = match[1].replace("-", "_")
        known = nearest(name, keys)[:1]
        return f": keys have no dashes before them: {known[0] if known else name}={match[2] or '...'}"
    for pattern in (_COLON, _SPACED):
        if match := pattern.fullmatch(word):
            key, value = [part for part in match.groups() if part is not None][:2]
            value = value.lstrip("=").strip()
            return f": it is written without spaces: {key.strip()}={value or '...'}"
    if word.strip("+~=") == "" or word.startswith("="):
        return ": key, sign and value are one word without spaces, such as epochs=20"
    if re.fullmatch(_KEY, word):
        known = nearest(word, keys)[:1]
        return f": it has no value: {known[0] if known else word}=..."
    return ": it has no key; key, sign and value are one word, such as epochs=20"


class OverrideParser(argparse.ArgumentParser):
    """A parser of overrides and `--config-dir`, which says how keys are written when one is taken for an option.

    Args:
        keys: that there are, groups among them.
    """

    def __init__(self, *, keys: Iterable[str], **settings: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **settings)
        self._keys = list(keys)
        self.add_argument("overrides", nargs="*", metavar="OVERRIDES", help="see below")
        self.add_argument(
            "--config-dir",
            type=Path,
            action="append",
            default=[],
            metavar="DIR",
            help="a folder with further group files",
        )

    def error(self, message: str) -> NoReturn:
        """Exit with 2 and the message."""
        match = re.match(r"unrecognized arguments: (-\S+)", message)
        super().error(message + (how_to_write(match[1], self._keys) if match else ""))
