"""Secrets among the values of a configuration, which is written to disk, checkpoints, reports and W&B."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from prdp.support.errors import ConfigError

_SECRET_KEY = re.compile(r"(.*_)?(api_?key|access_?key|secret|token|password|passwd|credentials?)", re.IGNORECASE)
_SECRET_VARIABLE = re.compile(r".*(KEY|TOKEN|SECRET|PASSWORD|PASSWD)", re.IGNORECASE)
_SHORTEST = 8
"""Contents of environment variables below this length are too common to be looked for."""


def check_no_secrets(config: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> None:
    """Refuse a configuration that holds a secret; the message names the key and never shows the value.

    Args:
        config: plain containers.
        environment: whose secrets are looked for.

    Raises:
        ConfigError: a key that is called like a secret and has a text, a URL with a password, or the content of an
            environment variable that is called like a secret.
    """
    known = {
        value: name
        for name, value in environment.items()
        if _SECRET_VARIABLE.fullmatch(name) and len(value) >= _SHORTEST
    }
    problems = []
    for key, value in _texts(config, ""):
        variable = next((name for secret, name in known.items() if secret in value), None)
        if variable is not None:
            problems.append(f"{key}: holds the content of the environment variable {variable}")
        elif _SECRET_KEY.fullmatch(key.rpartition(".")[2]) and value:
            problems.append(f"{key}: is called like a secret, and has a value")
        elif _has_password(value):
            problems.append(f"{key}: is a URL with a password")
    if problems:
        raise ConfigError(
            "\n".join(problems)
            + "\nA configuration is written to the run's folder, checkpoints, report and W&B. Leave secrets in the "
            "environment, and give a reward of yours the name of the variable"
        )


def _texts(content: Any, key: str) -> Iterator[tuple[str, str]]:
    """Every text with its dotted key."""
    if isinstance(content, Mapping):
        for name, value in content.items():
            yield from _texts(value, f"{key}.{name}" if key else str(name))
    elif isinstance(content, list | tuple):
        for value in content:
            yield from _texts(value, key)
    elif isinstance(content, str):
        yield key, content


def _has_password(value: str) -> bool:
    if "://" not in value:
        return False
    try:
        return bool(urlsplit(value).password)
    except ValueError:
        return False
