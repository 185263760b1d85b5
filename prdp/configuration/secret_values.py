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


def without_secrets(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration of whatever origin to be shown: what is called like a secret, or is a URL with a password, or
    holds the content of a variable of this environment that is called like a secret, is '(hidden)'.
    """
    known = [
        value for name, value in os.environ.items() if _SECRET_VARIABLE.fullmatch(name) and len(value) >= _SHORTEST
    ]

    def shown(content: Any, secret: bool) -> Any:
        if isinstance(content, Mapping):
            return {
                str(name): shown(value, secret or bool(_SECRET_KEY.fullmatch(str(name))))
                for name, value in content.items()
            }
        if isinstance(content, list | tuple):
            return [shown(value, secret) for value in content]
        hidden = secret and content not in ("", None)
        if isinstance(content, str):
            hidden = hidden or _has_password(content) or any(value in content for value in known)
        return "(hidden)" if hidden else content

    return dict(shown(config, False))


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
