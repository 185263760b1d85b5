"""From YAML to a checked `TrainConfig` and back; errors name the key and what was expected."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from prdp.config import TrainConfig
from prdp.configuration.bounds import check_bounds
from prdp.configuration.prompt_files import of_prompt_files
from prdp.support.errors import ConfigError
from prdp.support.plain_yaml import dump_yaml, literal, load_yaml
from prdp.support.suggest import did_you_mean
from prdp.support.targets import renamed

__all__ = [
    "TRAIN",
    "ConfigError",
    "Root",
    "conf_folder",
    "config_yaml",
    "explained",
    "groups",
    "read_config",
    "schema_keys",
    "typed",
    "unknown_key",
    "write_config",
]


@dataclass(frozen=True)
class Root:
    """The configuration of one command.

    Attributes:
        name: of conf/<name>.yaml.
        schema: dataclass of its keys; the YAML takes it in as `schema`.
        groups: the groups of conf/ that it is composed of.
        check: raises ConfigError for values out of bounds.
        prepare: changes the composed configuration, as plain containers, before it meets the schema.
        nodes: name -> content, further configurations that the YAML takes in by name.
        made: group -> what makes an option of a name that no file of the group has; None for a name of no option.
    """

    name: str
    schema: type
    groups: tuple[str, ...]
    check: Callable[[Any], None]
    prepare: Callable[[dict[str, Any]], dict[str, Any]] = lambda plain: plain
    nodes: Mapping[str, Any] = field(default_factory=dict)
    made: Mapping[str, Callable[[str], Mapping[str, Any] | None]] = field(default_factory=dict)

    @property
    def open_sections(self) -> tuple[str, ...]:
        """Sections whose keys are the arguments of their `_target_`, or the knobs of their `name`."""
        return tuple(key for key, kind in schema_keys(self.schema).items() if kind == dict[str, Any])


TRAIN = Root(
    name="train",
    schema=TrainConfig,
    groups=("cluster", "experiment", "learner", "model", "objective", "prompts", "reward", "sampler", "tracking"),
    check=check_bounds,
    made={"prompts": of_prompt_files},
)


def conf_folder() -> Path:
    """The folder of the YAML files: inside the installed package, or beside it in a source checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / f"{TRAIN.name}.yaml").is_file():
            return folder
    raise FileNotFoundError(
        f"no {TRAIN.name}.yaml in {package}/conf or {package.parent}/conf: the installation is incomplete"
    )


def groups(folders: Sequence[Path], root: Root = TRAIN) -> dict[str, list[str]]:
    """Name of each of the root's groups -> its options, over all folders."""
    found: dict[str, set[str]] = {}
    for folder in folders:
        for file in folder.glob("*/*.yaml"):
            if file.parent.name in root.groups:
                found.setdefault(file.parent.name, set()).add(file.stem)
    return {group: sorted(options) for group, options in sorted(found.items())}


@cache
def schema_keys(schema: type = TrainConfig) -> dict[str, Any]:
    """Every dotted key of a schema, sections included, with its type."""
    return _keys(schema, "")


def typed(composed: Any, root: Root = TRAIN) -> Any:
    """Convert a composed configuration, or any mapping of the same keys, to the root's checked dataclass.

    References in a configuration that Hydra composed are resolved, once; in any other mapping, and in what comes out of
    the first, `${` is text. `output_dir`, where there is one, becomes absolute.

    Raises:
        ConfigError: an unknown key, a wrong type, a missing value, or a value out of bounds; by key.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        plain: Any = OmegaConf.to_container(composed, resolve=True) if OmegaConf.is_config(composed) else dict(composed)
        merged = OmegaConf.merge(_structured(root.schema), literal(root.prepare(plain)))
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise ConfigError(
                f"no value for {', '.join(missing)}; give it: {' '.join(f'{key}=...' for key in missing)}"
            )
        config: Any = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(explained(error, root)) from error
    root.check(config)
    if "output_dir" in schema_keys(root.schema):
        config.output_dir = os.path.abspath(os.path.expanduser(config.output_dir))
    return config


@cache
def _structured(schema: type) -> Any:
    """The schema with its defaults, for merging into: `OmegaConf.merge` copies it."""
    from omegaconf import OmegaConf

    return OmegaConf.structured(schema)


def config_yaml(config: Any) -> str:
    """The whole configuration as YAML."""
    return dump_yaml(dataclasses.asdict(config))


def write_config(config: Any, path: str | os.PathLike[str]) -> None:
    """Save the whole configuration as YAML, atomically.

    Raises:
        OSError: the file cannot be written; what it held before stays.
    """
    from prdp.support.storage import write_atomically

    write_atomically(path, config_yaml(config).encode())


def read_config(path: str | os.PathLike[str], root: Root = TRAIN) -> Any:
    """Read what `write_config` saved, as data: nothing in it is resolved, whoever wrote it.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: it is no YAML mapping, or holds keys or values that this version does not take.
    """
    try:
        content = load_yaml(path)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if not isinstance(content, dict):
        raise ConfigError(f"{os.fspath(path)} must hold a mapping of keys")
    try:
        return typed(renamed(content), root)
    except ConfigError as error:
        raise ConfigError(f"{os.fspath(path)}: {error}") from error


def explained(error: BaseException, root: Root = TRAIN) -> str:
    """An error of Hydra or OmegaConf in our words: the file, the key, what is wrong, what was expected."""
    from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

    chain = _chain(error)
    lines = [line.strip() for link in chain for line in str(link).splitlines() if line.strip()]
    file = next((found[1] for line in lines if (found := re.match(r"In '([^']+)'", line))), None)
    place = f"{file}.yaml: " if file else ""
    causes = [link for link in chain if isinstance(link, OmegaConfBaseException) and str(link)]
    if not causes:
        return "; ".join(dict.fromkeys(lines))
    cause = next((link for link in causes if link.full_key), causes[0])
    reason = str(cause).splitlines()[0]
    key = str(cause.full_key or "")
    if isinstance(cause, ConfigKeyError | ConfigAttributeError):
        return f"{place}{unknown_key(key, root=root)}"
    known = schema_keys(root.schema)
    if get_origin(known.get(key)) is list and "ListConfig" in reason:
        return f"{place}{key}: must be a list, written {key}=[a,b]"
    expected = f"; must be {_words(known[key])}" if key in known else ""
    return f"{place}{f'{key}: ' if key else ''}{reason}{expected}"


def unknown_key(key: str, others: Iterable[str] = (), root: Root = TRAIN) -> str:
    """A message with the nearest of the schema's keys and of `others`, or the keys of the section."""
    keys = schema_keys(root.schema)
    candidates = [*keys, *others]
    parts = key.split(".")
    known = next(depth for depth in range(len(parts), -1, -1) if depth == 0 or ".".join(parts[:depth]) in candidates)
    section, stray = ".".join(parts[:known]), ".".join(parts[: known + 1])
    hint = did_you_mean(key, candidates) or did_you_mean(stray, candidates)
    if not hint and section:
        inside = [name for name in keys if name.rpartition(".")[0] == section]
        hint = f"; {section} takes {', '.join(name.rpartition('.')[2] for name in inside)}" if inside else ""
    return f"unknown key '{key}'{hint or f'; `prdp {root.name} --help` tells how to list the keys'}"


def _chain(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    return chain


def _keys(schema: Any, prefix: str) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    for name, kind in get_type_hints(schema).items():
        keys[f"{prefix}{name}"] = kind
        if dataclasses.is_dataclass(kind):
            keys.update(_keys(kind, f"{prefix}{name}."))
    return keys


def _words(kind: Any) -> str:
    if dataclasses.is_dataclass(kind):
        return f"a section with the keys {', '.join(get_type_hints(kind))}"
    names = {int: "an integer", float: "a number", str: "text", bool: "true or false"}
    return names.get(kind, str(kind).replace("None", "null"))
