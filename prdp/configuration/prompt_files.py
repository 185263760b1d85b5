"""Prompt files as options of the group prompts: prompts=mine.txt, and prompts=train.txt:heldout.txt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prdp.support.errors import ConfigError
from prdp.support.targets import TARGET

_WHOLE, _PART = "prdp.prompts.any_file.open_prompts", "prdp.prompts.part_of_file.part_of_prompts"


def of_prompt_files(name: str) -> dict[str, Any] | None:
    """The section prompts of a word that names one prompt file or two; None for a word that names none.

    Of one file, a part is held out; of two, a colon between them, the second is. A word names a file when it has a
    folder before it, or an ending.

    Raises:
        ConfigError: there is no such file, or its ending tells of no format.
    """
    if not _names_file(name):
        return None
    train, colon, heldout = name.rpartition(":")
    if not colon or _exists(name):
        _check(name, name)
        parts = ({TARGET: _PART, "path": name, "part": part} for part in ("train", "heldout"))
    else:
        for path in (train, heldout):
            _check(name, path)
        parts = ({TARGET: _WHOLE, "path": path} for path in (train, heldout))
    return {**dict(zip(("train", "heldout"), parts, strict=True)), "shuffle": True}


def _names_file(name: str) -> bool:
    return "/" in name or ":" in name or bool(Path(name).suffix) or name.startswith("~")


def _exists(path: str) -> bool:
    return Path(path).expanduser().exists()


def _check(name: str, path: str) -> None:
    from prdp.prompts.any_file import reader_of

    if not path:
        raise ConfigError(f"prompts={name}: a file is missing beside the colon, as in prompts=train.txt:heldout.txt")
    if not _exists(path):
        raise ConfigError(f"prompts={name}: there is no file {path}")
    try:
        reader_of(path)
    except ValueError as error:
        raise ConfigError(f"prompts={name}: {error}") from error
