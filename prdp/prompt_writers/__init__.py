"""Prompts that a language model, or a grammar, writes from a few examples: Self-Instruct by skills."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prdp.prompt_writers.base import Writer
from prdp.support.errors import ConfigError, start_up_checks
from prdp.support.targets import TARGET, build, check_target, locate


def check_writer(key: str, section: Mapping[str, Any], has_scenes: bool) -> None:
    """Check a writer's section before it is built: its target, its arguments, and what its own `check` finds.

    Args:
        key: where the section stands, for messages.
        has_scenes: whether the skill is one of the shapes world.

    Raises:
        ConfigError, StartError: by key.
    """
    check_target(key, section)
    target = locate(f"{key}.{TARGET}", section[TARGET])
    if getattr(target, "needs_scenes", False) and not has_scenes:
        raise ConfigError(
            f"{key}={section[TARGET].rpartition('.')[2]}: writes for skills that have scenes, such as "
            "skill=shapes_color; this one has none"
        )
    check = getattr(target, "check", None)
    if check is not None:
        with start_up_checks(key):
            check(**{name: value for name, value in section.items() if name != TARGET})


def build_writer(section: Mapping[str, Any]) -> Writer:
    """Build the writer of a checked section {"_target_": dotted path, argument: value, ...}.

    Raises:
        StartError: what it needs is missing.
    """
    with start_up_checks("writer"):
        writer: Writer = build("writer", section)
    return writer
