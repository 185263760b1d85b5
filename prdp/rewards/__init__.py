"""Rewards: black-box scorers of images, one file each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prdp.rewards.base import Reward
from prdp.rewards.dependencies import are_elsewhere, dependencies_elsewhere
from prdp.rewards.scoring import errors_named
from prdp.support.errors import ConfigError, start_up_checks
from prdp.support.targets import TARGET, build, check_target, locate

_BUILDING = (ValueError, OSError, ImportError)
"""What a reward raises when something that it needs is missing or wrong; the message is meant for people."""


def build_reward(config: Mapping[str, Any]) -> Reward:
    """Build the reward of a configuration section {"_target_": dotted path, argument: value, ...}.

    Raises:
        ValueError: the target lacks `name`, `version` or `score`.
        ValueError, OSError, ImportError: the builder's own; others come as a `RewardError`.
    """
    with errors_named(f"reward {config.get(TARGET)}, being built,", but=_BUILDING):
        reward = build("reward", config)
    missing = [part for part in ("name", "version", "score") if not hasattr(reward, part)]
    if missing:
        raise ValueError(f"reward {config.get('_target_')} has no {', '.join(missing)}: see prdp.rewards.base.Reward")
    return reward


def prompt_checks(key: str, section: Mapping[str, Any]) -> dict[str, Callable[[str, Mapping[str, Any]], None]]:
    """What a reward, and each that it is made of, looks for in prompts: its class's `check_prompt`, by key.

    Args:
        key, section: as for `check_reward`, which they have passed.

    Returns:
        functions of a prompt and its metadata that raise ValueError when it cannot be scored.
    """
    return _members("check_prompt", key, section)


def size_checks(key: str, section: Mapping[str, Any]) -> dict[str, Callable[[int, int], None]]:
    """Likewise of a class's `check_size`: functions of the height and width of pictures that cannot be scored."""
    return _members("check_size", key, section)


def _members(name: str, key: str, section: Mapping[str, Any]) -> dict[str, Callable[..., None]]:
    check = getattr(locate(f"{key}.{TARGET}", section[TARGET]), name, None)
    found = {} if check is None else {key: check}
    for place, inner in _parts(key, section):
        found |= _members(name, place, inner)
    return found


def _parts(key: str, section: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Key and section of each reward that a reward is made of: the terms of a sum, the reward of a sub-score."""
    terms = section.get("terms")
    owners = {f"{key}.terms.{term}": inner for term, inner in terms.items()} if isinstance(terms, Mapping) else {}
    for place, owner in {key: section, **owners}.items():
        inner = owner.get("reward") if isinstance(owner, Mapping) else None
        if isinstance(inner, Mapping) and TARGET in inner:
            yield f"{place}.reward", inner


def check_reward(key: str, section: Mapping[str, Any], elsewhere: bool = False) -> None:
    """Check a reward's section before it is built: its target, its arguments, and what its own `check` finds.

    Args:
        key: where the section stands, for messages.
        section: as for `build_reward`.
        elsewhere: the reward will run in another environment, so packages that are missing here do not matter; so
            also, within such a check, for the parts of a reward.

    Raises:
        ConfigError, StartError: by key.
    """
    elsewhere = elsewhere or are_elsewhere()
    try:
        check_target(key, section)
    except ConfigError as error:
        if elsewhere and isinstance(error.__cause__, ModuleNotFoundError):
            return  # Its module needs a package that only its own environment has; the actor will import it.
        raise
    check = getattr(locate(f"{key}.{TARGET}", section[TARGET]), "check", None)
    if check is None:
        return
    arguments = {name: value for name, value in section.items() if name != TARGET}
    passing = dependencies_elsewhere() if elsewhere else contextlib.nullcontext()
    with start_up_checks(key), passing, errors_named(f"its check in {section[TARGET]}", but=_BUILDING):
        check(**arguments)
