"""Checks of `_target_` sections: the named class or function exists and takes the arguments given."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prdp.support.errors import ConfigError
from prdp.support.suggest import did_you_mean
from prdp.support.user_code import own_frames, told

TARGET = "_target_"
_IMPORTING = (
    SyntaxError, NameError, TypeError, AttributeError, LookupError, ValueError, ArithmeticError, AssertionError,
    RuntimeError, OSError,
)  # fmt: skip
"""What a module of the user's raises when it is imported, if something is wrong with it."""


_RENAMED = {
    "prdp.prompts.gaussian_mixtures": "prdp.worlds.mixtures.prompts",
    "prdp.prompts.shapes": "prdp.worlds.shapes.prompts",
    "prdp.rewards.gaussian_mixtures": "prdp.worlds.mixtures.reward",
    "prdp.rewards.shapes_judge": "prdp.worlds.shapes.reward",
}
"""Modules of version 0.1 -> where their classes are now; runs and checkpoints of that version name the former."""


def renamed(content: Any) -> Any:
    """Plain containers whose targets have the names of this version."""
    if isinstance(content, Mapping):
        return {
            key: current_name(value) if key == TARGET and isinstance(value, str) else renamed(value)
            for key, value in content.items()
        }
    return [renamed(value) for value in content] if isinstance(content, list | tuple) else content


def current_name(target: str) -> str:
    """The dotted path of a target in this version."""
    module, _, name = target.rpartition(".")
    return f"{_RENAMED[module]}.{name}" if module in _RENAMED else target


def check_target(key: str, section: Any) -> None:
    """Check a section {"_target_": "package.module.name", argument: value, ...}, and those nested in it.

    Args:
        key: where the section stands, for messages, such as 'prompts.train'.

    Raises:
        ConfigError: no target, one that cannot be imported or called, or arguments that do not fit its signature.
    """
    if not isinstance(section, Mapping) or not isinstance(section.get(TARGET), str):
        raise ConfigError(f"{key} must be a mapping with {TARGET}: package.module.name, got {section!r}")
    name = section[TARGET]
    target = locate(f"{key}.{TARGET}", name)
    if not callable(target):
        raise ConfigError(f"{key}.{TARGET}={name}: is a {type(target).__name__}, must be a class or a function")
    arguments = {argument: value for argument, value in section.items() if argument != TARGET}
    _check_arguments(key, name, target, arguments)
    for argument, value in arguments.items():
        if isinstance(value, Mapping) and TARGET in value:
            check_target(f"{key}.{argument}", value)


def build(key: str, section: Mapping[str, Any]) -> Any:
    """Call the target of a checked section with its arguments, nested ones first; what it raises passes through."""
    target = locate(f"{key}.{TARGET}", section[TARGET])
    arguments = {
        argument: build(f"{key}.{argument}", value) if isinstance(value, Mapping) and TARGET in value else value
        for argument, value in section.items()
        if argument != TARGET
    }
    return target(**arguments)


def locate(key: str, name: str) -> Any:
    """Import 'package.module.name'; modules of the current folder are found too.

    Raises:
        ConfigError: naming the part that does not exist, with the nearest that does, or what importing it raises.
    """
    module_name, _, attribute = current_name(name).rpartition(".")
    if not module_name:
        raise ConfigError(f"{key}={name}: must be a dotted path, package.module.name")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module_name == missing or module_name.startswith(missing + "."):
            raise ConfigError(f"{key}={name}: there is no module '{missing}'{_nearest_module(missing)}") from None
        raise ConfigError(f"{key}={name}: importing {module_name} needs '{missing}', which is not installed") from error
    except ImportError as error:
        raise ConfigError(f"{key}={name}: importing {module_name} fails: {told(error)}") from error
    except SystemExit as error:
        raise ConfigError(
            f"{key}={name}: importing {module_name} calls sys.exit({error.code!r}){own_frames(error)}"
        ) from error
    except _IMPORTING as error:
        raise ConfigError(
            f"{key}={name}: importing {module_name} raises {type(error).__name__}: {told(error)}{own_frames(error)}"
        ) from error
    if not hasattr(module, attribute):
        public = [entry for entry in vars(module) if not entry.startswith("_")]
        raise ConfigError(f"{key}={name}: module {module_name} has no '{attribute}'{did_you_mean(attribute, public)}")
    return getattr(module, attribute)


def _check_arguments(key: str, name: str, target: Any, arguments: Mapping[str, Any]) -> None:
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return  # Some builtins have no signature to check against.
    by_name = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    short = name.rpartition(".")[2]
    problems = [
        f"{key}.{argument}={value}: {short} takes no argument '{argument}'"
        f"{did_you_mean(argument, by_name) or _takes(by_name)}"
        for argument, value in arguments.items()
        if argument not in by_name and not takes_any
    ]
    problems += [
        f"{key}.{parameter.name}: must be given, {short} needs it"
        for parameter in by_name.values()
        if parameter.default is parameter.empty and parameter.name not in arguments
    ]
    if problems:
        raise ConfigError("\n".join(problems))


def _takes(parameters: Mapping[str, inspect.Parameter]) -> str:
    return f"; it takes {', '.join(parameters)}" if parameters else "; it takes none"


def _nearest_module(missing: str) -> str:
    """A hint from the modules beside the missing one; its parents have been imported by then."""
    package, _, leaf = missing.rpartition(".")
    if not package:
        return ""
    beside = [module.name for module in pkgutil.iter_modules(importlib.import_module(package).__path__)]
    return did_you_mean(leaf, beside)
