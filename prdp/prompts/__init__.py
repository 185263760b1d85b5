"""Prompts: sources, and the stream that training draws from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prdp.prompts.stream import PromptSource
from prdp.targets import build


def build_prompts(key: str, config: Mapping[str, Any]) -> PromptSource:
    """Build the source of a configuration section {"_target_": dotted path, argument: value, ...}.

    Raises:
        ValueError: an empty source, named by `key`; the builder's own errors pass through.
    """
    source: PromptSource = build(key, config)
    if len(source) == 0:
        raise ValueError(f"{key} ({config.get('_target_')}) holds no prompts")
    return source
