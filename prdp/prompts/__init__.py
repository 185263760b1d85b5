"""Prompts: sources, and the stream that training draws from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prdp.errors import ConfigError, start_up_checks
from prdp.prompts.stream import PromptSource
from prdp.targets import build, check_target


def build_prompts(key: str, config: Mapping[str, Any]) -> PromptSource:
    """Build the source of a configuration section {"_target_": dotted path, argument: value, ...}.

    Raises:
        ConfigError, StartError: a target that does not exist or takes other arguments, an empty source, and whatever
            the reader refuses; by key.
    """
    check_target(key, config)
    with start_up_checks(key):
        source: PromptSource = build(key, config)
        if len(source) == 0:
            raise ConfigError("the source holds no prompt")
    return source
