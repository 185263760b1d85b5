"""YAML that is data: nothing in it is resolved, imported or run, and every text comes back as it was.

What a person types may hold references such as ${oc.env:HOME}. They are resolved once, when a command line is composed;
what is saved holds their values. A file that was saved, by whomever, is therefore read without resolving anything.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

_MOST_VALUES = 100_000
_DEEPEST = 50
"""Levels of mappings and lists: who works on a configuration goes through them by recursion."""
_REFERENCE = re.compile(r"(\\*)\$\{")


def load_yaml(path: str | os.PathLike[str]) -> Any:
    """The content of a YAML file as plain mappings, lists, texts, numbers, dates, booleans and None.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not YAML, not UTF-8, nests too deeply, or has a tag that asks for more than data; names it.
    """
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        values, depth = _written_out(content, {})
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{os.fspath(path)} is not YAML: {error}") from error
    if depth > _DEEPEST:
        raise ValueError(f"{os.fspath(path)} is nested {depth} levels deep, of {_DEEPEST} at most")
    if values > _MOST_VALUES:
        raise ValueError(f"{os.fspath(path)} has aliases that come to {values:,} values, of {_MOST_VALUES:,} at most")
    return content


def _written_out(content: Any, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Number of values, aliases counted as often as they occur, and of levels."""
    if not isinstance(content, dict | list):
        return 1, 0
    if id(content) not in known:
        inner = content.values() if isinstance(content, dict) else content
        counts = [_written_out(one, known) for one in inner]
        known[id(content)] = 1 + sum(values for values, _ in counts), 1 + max((depth for _, depth in counts), default=0)
    return known[id(content)]


def dump_yaml(content: Any) -> str:
    """Plain containers as YAML, keys in their order; `load_yaml` reads the same back."""
    import yaml

    return str(yaml.safe_dump(content, default_flow_style=False, sort_keys=False, allow_unicode=True))


def literal(content: Any) -> Any:
    """Plain containers whose texts OmegaConf and Hydra take as they are: each `${` in them is escaped."""
    if isinstance(content, str):
        return _REFERENCE.sub(lambda found: found[1] * 2 + "\\${", content)
    if isinstance(content, dict):
        return {key: literal(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [literal(value) for value in content]
    return content
