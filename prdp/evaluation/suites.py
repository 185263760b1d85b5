"""Benchmarks by name: `suite=geneval` stands for the words of its file in conf/suite."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prdp.configuration.override_words import quoted, quoted_list
from prdp.support.errors import ConfigError
from prdp.support.plain_yaml import load_yaml
from prdp.support.suggest import did_you_mean

GROUP = "suite"


def suite_words(words: Sequence[str], folders: Sequence[Path]) -> tuple[str | None, list[str]]:
    """The suite that a command line names, and the words with those of the suite in front.

    What is typed beside it comes after, and wins: `rewards=[mine]` takes the place of the suite's rewards and of what
    it says about their arguments.

    Args:
        words: of the command line.
        folders: with configuration files; of two suites of one name the last folder's is taken.

    Raises:
        ConfigError: no such suite, with those that there are; two of them; or a file that is none.
    """
    named = [word for word in words if word.partition("=")[0] == GROUP and "=" in word]
    if not named:
        return None, list(words)
    if len(named) > 1:
        raise ConfigError(f"{' '.join(named)}: one suite at a time")
    name = named[0].partition("=")[2].strip().strip("'\"")
    files = {file.stem: file for folder in folders for file in sorted(folder.glob(f"{GROUP}/*.yaml"))}
    if name not in files:
        hint = did_you_mean(name, files) or f"; there are {', '.join(files)}"
        raise ConfigError(f"{named[0]}: there is no such suite{hint}")
    rest = [word for word in words if word not in named]
    given = {word.partition("=")[0] for word in rest}
    content = load_yaml(files[name])
    if not isinstance(content, Mapping):
        raise ConfigError(f"{files[name]}: must hold keys of prdp evaluate and their values")
    own = [
        f"{key}={_value(files[name], key, value)}"
        for key, value in content.items()
        if key not in given and not ("." in str(key) and str(key).partition(".")[0] in given)
    ]
    return name, [*own, *rest]


def _value(file: Path, key: Any, value: Any) -> str:
    """A value as a command line has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, list) and all(isinstance(one, str) and re.fullmatch(r"[\w.:/-]+", one) for one in value):
        return quoted_list(value)
    raise ConfigError(f"{file}: {key}: must be a number, a text, true, false or a list of names")
