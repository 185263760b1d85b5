"""`prdp <command> --help TOPIC`: keys with their meaning, type, bounds and default, and the options of groups.

Meanings come from the texts below the keys in the schemas, bounds from the rules in their types, defaults from conf/.
Classes are read, not imported, so that help about a model reward needs none of its packages.
"""

from __future__ import annotations

import ast
import dataclasses
import itertools
import sys
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prdp.config import MISSING
from prdp.configuration.typed import TRAIN, Root, conf_folder, groups
from prdp.support.errors import ConfigError
from prdp.support.plain_yaml import load_yaml
from prdp.support.rules import ANYTHING, FILLED, rule_of
from prdp.support.suggest import did_you_mean
from prdp.support.targets import TARGET

_WIDTH = 110
_NAMES = {int: "integer", float: "number", str: "text", bool: "true or false", types.NoneType: "null", Any: "anything"}


@dataclass(frozen=True)
class Key:
    """A key of a configuration.

    Attributes:
        name: dotted.
        kind: its type and bound in words.
        meaning: a sentence or two.
        default: of the schema; `dataclasses.MISSING` where it has to be given.
        is_section: whether it holds further keys of the schema.
    """

    name: str
    kind: str
    meaning: str
    default: Any
    is_section: bool


def topics_among(arguments: Sequence[str]) -> list[str] | None:
    """What help is asked about: the words that set nothing; None where no help is asked for."""
    if not {"-h", "--help"} & set(arguments):
        return None
    return [word.rstrip("=") for word in arguments if not word.startswith("-") and "=" not in word.rstrip("=")]


def topics_help(topics: Sequence[str], root: Root = TRAIN) -> str:
    """`topic_help` of each topic."""
    return "\n\n".join(topic_help(topic, root) for topic in topics)


def flat_help(schema: type) -> str:
    """All keys of a schema that conf/ says nothing about."""
    return _keys_text(list(documented(schema)), {})


def documented(schema: type, prefix: str = "") -> Iterator[Key]:
    """Every key of a schema, sections before what they hold."""
    texts = _texts(schema)
    kinds = typing.get_type_hints(schema, include_extras=True)
    for entry in dataclasses.fields(schema):
        kind = kinds[entry.name]
        inner = dataclasses.is_dataclass(kind)
        text = texts.get(entry.name, "") or (_summary(kind.__doc__) if inner else "")
        default = entry.default if entry.default_factory is dataclasses.MISSING else entry.default_factory()
        yield Key(f"{prefix}{entry.name}", "section" if inner else _allowed(kind), text, default, inner)
        if inner:
            yield from documented(kind, f"{prefix}{entry.name}.")


def topic_help(topic: str, root: Root = TRAIN) -> str:
    """What is known about a key, a section, the beginning of keys, a group or an option of one.

    Args:
        topic: such as 'epochs', 'learner', 'learner.adam', 'reward' or 'reward.hpsv2'.
        root: of the command.

    Raises:
        ConfigError: nothing is of that name; with those that resemble it.
    """
    keys = {key.name: key for key in documented(root.schema)}
    available = groups([conf_folder()], root)
    group, *rest = topic.split(".")
    if rest and rest[0] in available.get(group, ()):
        return option_help(group, rest[0])
    chosen = [key for name, key in keys.items() if name == topic or name.startswith(f"{topic}.")]
    chosen = chosen or [key for name, key in keys.items() if "." in topic and name.startswith(topic)]
    parts = [_keys_text(chosen, _defaults(root))] if chosen else []
    if topic in available:
        parts.append(_options_text(topic, available[topic], root))
    if not parts:
        options = [f"{name}.{one}" for name, names in available.items() for one in names]
        hint = did_you_mean(topic, [*keys, *available, *options])
        sections = ", ".join(dict.fromkeys([*(key.name for key in keys.values() if key.is_section), *available]))
        raise ConfigError(f"--help {topic}: there is no such key, section or group{hint or f'; there are {sections}'}")
    return "\n\n".join(parts)


def option_help(group: str, option: str) -> str:
    """An option's file, and the arguments of the classes that it names."""
    file = conf_folder() / group / f"{option}.yaml"
    text = file.read_text(encoding="utf-8").rstrip()
    content = load_yaml(file)
    classes = [part for target in dict.fromkeys(_targets(content)) if (part := class_help(target))]
    return "\n\n".join([f"{group}={option} sets", textwrap.indent(text, "  "), *classes])


def class_help(target: str) -> str:
    """Arguments and description of a class or function of this package, from its source; empty for another."""
    module, _, name = target.rpartition(".")
    file = Path(__file__).parents[1].joinpath(*module.split(".")[1:]).with_suffix(".py")
    if not module.startswith("prdp.") or not file.is_file():
        return ""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    nodes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    node = nodes.get(name)
    if node is None:
        return ""
    call = f"{name}({', '.join(_arguments(node, nodes))})"
    told = textwrap.indent(ast.get_docstring(node) or "", "  ")
    return "\n".join([*textwrap.wrap(call, _WIDTH, subsequent_indent="    ", break_long_words=False), told]).rstrip()


def _arguments(node: ast.ClassDef | ast.FunctionDef, nodes: Mapping[str, ast.AST]) -> list[str]:
    """The arguments as they are written; of a class without a constructor of its own, its base's."""
    if isinstance(node, ast.ClassDef):
        made = [part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"]
        bases = [nodes[base.id] for base in node.bases if isinstance(base, ast.Name) and base.id in nodes]
        if not made:
            base = bases[0] if bases else None
            return _arguments(base, nodes) if isinstance(base, ast.ClassDef) else []
        node = made[0]
    given = node.args
    names = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(names) - len(given.defaults)) + list(given.defaults)
    pairs = [*zip(names, defaults, strict=True), *zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    words = [
        ast.unparse(argument) + (f" = {ast.unparse(default)}" if default is not None else "")
        for argument, default in pairs
        if argument.arg != "self"
    ]
    return words + ([f"**{ast.unparse(given.kwarg)}"] if given.kwarg else [])


def _texts(schema: type) -> dict[str, str]:
    """Field -> the text that stands below it."""
    source = Path(str(sys.modules[schema.__module__].__file__)).read_text(encoding="utf-8")
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    body = next(node.body for node in classes if node.name == schema.__name__)
    return {
        field.target.id: " ".join(str(text.value.value).split())
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }


def _allowed(annotation: Any) -> str:
    """Type and rule of an annotation, in words."""
    others = [part for part in typing.get_args(annotation) if part is not types.NoneType]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType) and len(others) == 1:
        inner = _allowed(others[0])
        return f"{inner}{',' if ',' in inner else ''} or null"
    kind, rule = _kind(annotation), rule_of(annotation)
    if rule is None or rule.words in (ANYTHING.words, FILLED.words):
        return kind
    if rule.each:
        return f"{kind}, each {rule.words}"
    return rule.words if rule.choices else f"{kind}, {rule.words}"


def _kind(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Annotated:
        return _kind(typing.get_args(kind)[0])
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join(_kind(part) for part in typing.get_args(kind))
    if typing.get_origin(kind) is list:
        return f"list of {_kind(typing.get_args(kind)[0])}"
    if typing.get_origin(kind) is dict:
        return "mapping"
    return _NAMES.get(kind, str(kind))


def _defaults(root: Root) -> dict[str, Any]:
    """Dotted key -> what conf/ sets it to when only what must be given is: the root's file and its options."""
    content = load_yaml(conf_folder() / f"{root.name}.yaml")
    found: dict[str, Any] = {}
    for entry in content.pop("defaults"):
        for group, option in entry.items() if isinstance(entry, dict) else ():
            if option not in (None, MISSING) and group in root.groups:
                found[group] = load_yaml(conf_folder() / group / f"{option}.yaml")
                found |= dict(_flat(found[group], f"{group}."))
    return found | dict(_flat(content, ""))


def _flat(content: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        yield f"{prefix}{name}", value


def _keys_text(keys: Sequence[Key], defaults: Mapping[str, Any]) -> str:
    lines = []
    for key in keys:
        if key.is_section:
            lines.append(f"{key.name}: {key.meaning}")
            continue
        lines.append(f"  {key.name}  ({key.kind}; {_default(key, defaults)})")
        lines += textwrap.wrap(key.meaning, _WIDTH - 6, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)


def _default(key: Key, defaults: Mapping[str, Any]) -> str:
    value = defaults.get(key.name, key.default)
    if value is dataclasses.MISSING or value == MISSING:
        return "must be given"
    if isinstance(value, Mapping) and TARGET in value:
        return f"default {value[TARGET]}"
    if isinstance(value, Mapping) and "name" in value:
        return f"default {value['name']}"
    if isinstance(value, str) and value.startswith("${"):
        return "default: a folder of its own, named by the date"
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else f"{value}"
    if isinstance(value, list):
        shown = f"[{','.join(map(str, value))}]"
    return f"default {shown or repr(shown)}"


def _options_text(group: str, options: Sequence[str], root: Root) -> str:
    width = max(map(len, options))
    first = {option: first_comment(conf_folder() / group / f"{option}.yaml") for option in options}
    lines = [f"options, chosen by {group}=NAME; `prdp {root.name} --help {group}.{options[0]}` tells more of one:"]
    return "\n".join([*lines, *(f"  {option:<{width}}  {text}" for option, text in first.items())])


def first_comment(file: Path) -> str:
    """The first line of a YAML file that says what it is."""
    lines = (line.lstrip("# ").rstrip() for line in file.read_text(encoding="utf-8").splitlines())
    return next((line for line in lines if line and not line.startswith("@package")), "")


def _targets(content: Any) -> Iterator[str]:
    if isinstance(content, dict):
        if TARGET in content:
            yield content[TARGET]
        for value in content.values():
            yield from _targets(value)


def _summary(text: str | None) -> str:
    return " ".join((text or "").split("\n\n")[0].split())


def groups_text(root: Root, more: str) -> str:
    """The options of every group that a command takes, for the end of its help.

    Args:
        more: what follows: how to ask for more.
    """
    available = groups([conf_folder()], root)
    width = max(map(len, available))
    lines = [f"  {group:<{width}}  {', '.join(names)}" for group, names in available.items()]
    return "\n".join(["groups:", *lines, more])
