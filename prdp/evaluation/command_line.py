"""`models=[...] prompts=[...] rewards=[...] watch=[...]`, from short names to what Hydra composes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prdp.config import ModelConfig
from prdp.configuration.override_words import quoted_list, split_lists
from prdp.configuration.typed import Root, groups
from prdp.diffusion.adapter_files import model_adapters
from prdp.evaluation.models import check_exists, runs_among, split_name
from prdp.evaluation.runs import TrainedRun
from prdp.evaluation.settings import EvaluateConfig, check_evaluation
from prdp.evaluation.suites import GROUP, suite_words
from prdp.evaluation.trust import check_trust, trusted_folders
from prdp.prompts.any_file import has_columns
from prdp.support.errors import ConfigError
from prdp.support.plain_yaml import literal
from prdp.support.suggest import did_you_mean
from prdp.support.targets import TARGET

FROM_RUN = "from_run"
_TRAINED = "_trained"
"""Behind the name of a reward that a run was trained on while another one of that name is watched."""
SPLITS = ("train", "heldout")
_GROUP_OF = {"prompts": "prompts", "rewards": "reward", "watch": "reward"}
_SINGULAR = {"reward": "rewards", "model_paths": "models", "seed": "seeds", "prompt": "prompts"}


@dataclass(frozen=True)
class CommandLine:
    """What the words of a command line come to.

    Attributes:
        words: overrides that go to Hydra as they are.
        additions: Hydra's words for the options that were chosen.
        root: the configuration, with what the first run brings along.
        notes: what was taken from where, for people.
        model_is_given: whether anything says what 'base' is.
        sizes: those of height and width that the command line gives, which hold for every model.
    """

    words: tuple[str, ...]
    additions: tuple[str, ...]
    root: Root
    notes: tuple[str, ...]
    model_is_given: bool
    sizes: tuple[str, ...] = ()


@dataclass
class _Chosen:
    """Options and sections that the lists name."""

    additions: list[str] = field(default_factory=list)
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    splits: dict[str, str] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Command:
    """A command that takes models.

    Attributes:
        root: its configuration.
        lists: keys of lists of short names.
        judges: whether a suite, or runs among the models, bring along what they are judged by: prompts, rewards,
            and how many.
        all_columns: whether the columns of a file of prompts travel along as metadata.
        instead: key that stands in place of models -> settings that it brings along.
    """

    root: Root
    lists: tuple[str, ...]
    judges: bool = False
    all_columns: bool = False
    instead: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def read_command_line(
    words: Sequence[str], folders: Sequence[Path], command: Command | None = None
) -> CommandLine:
    """Translate the short names; everything else stays for Hydra.

    Args:
        words: of the command line.
        folders: with configuration files, those of the package first.
        command: None for `prdp evaluate`.

    Raises:
        ConfigError: an unknown reward or prompt set, with the nearest that exist; no models; or a run that asks for
            more than data and is not among those to trust.
    """
    command = command or EVALUATION
    suite, words = suite_words(words, folders) if command.judges else (None, words)
    for word in words:
        key = word.partition("=")[0]
        if _SINGULAR.get(key) in command.lists:
            raise ConfigError(f"{word}: unknown key '{key}'. Did you mean '{_SINGULAR[key]}'?")
    lists, rest = split_lists(words, command.lists)
    given = _keys_in(rest)
    instead = {key: value for name in command.instead.keys() & given for key, value in command.instead[name].items()}
    if not lists.get("models") and not command.instead.keys() & given:
        raise ConfigError(
            f"which models? Give models=[base,runs/mine], for instance; see prdp {command.root.name} --help"
        )
    for entry in lists.get("models", ()):
        check_exists(entry)
    runs = runs_among(lists.get("models", ()))
    available = groups(folders, dataclasses.replace(command.root, groups=("prompts", "reward")))
    chosen = _Chosen()
    for key, group in _GROUP_OF.items():
        for entry in lists.get(key, ()):
            _choose(chosen, key, entry, available.get(group, []), command.all_columns)
    overlay, notes = _settings_of(runs, rest) if runs else (instead, [])
    if runs and command.judges:
        judging, also = _judging_of(runs, lists, rest, chosen.names.get("watch", ()))
        overlay, notes = {**judging, **overlay}, [*notes, *also]
    if suite is not None:
        overlay[GROUP] = suite
    for key, sections in chosen.sections.items():
        overlay.setdefault(key, {}).update(sections)
    for key in _GROUP_OF:
        _check_names(key, [*chosen.names.get(key, []), *overlay.get(key, {})], rest)
    words = [f"{key}={quoted_list(entries)}" for key, entries in lists.items() if key in ("models", "export")]
    root = dataclasses.replace(
        command.root,
        nodes={FROM_RUN: literal(overlay)},
        prepare=lambda plain: _prepared(plain, chosen.splits),
    )
    says_model = bool(runs) or any(re.match(r"\+*model(\.path)?=", word) for word in rest)
    rest = [_addressed(word, chosen.splits) for word in rest]
    sizes = tuple(name for name in ("height", "width") if any(re.match(rf"\+*model\.{name}=", word) for word in rest))
    return CommandLine((*words, *rest), tuple(chosen.additions), root, tuple(notes), says_model, sizes)


EVALUATE = Root(
    name="evaluate",
    schema=EvaluateConfig,
    groups=("cluster", "features", "model", "sampler"),
    check=check_evaluation,
    nodes={FROM_RUN: {}},
)
EVALUATION = Command(EVALUATE, ("models", *_GROUP_OF, "export", "trust"), judges=True)


def _choose(chosen: _Chosen, key: str, entry: str, options: Sequence[str], all_columns: bool) -> None:
    """Take in one entry of prompts, rewards or watch: an option, a file of prompts, or a function's dotted path."""
    name, plain = split_name(entry)
    option, _, split = plain.partition(".") if key == "prompts" else (plain, "", "")
    if option in options and split in ("", *SPLITS):
        name = name or (f"{option}_{split}" if split == "train" else option)
        chosen.additions.append(f"+{_GROUP_OF[key]}@{key}.{name}={option}")
        chosen.splits[name] = split or "heldout"
    elif key == "prompts" and (Path(plain).expanduser().exists() or "/" in plain):
        name = name or re.sub(r"\W+", "_", Path(plain).name.partition(".")[0])
        columns = {"metadata_columns": "all"} if all_columns and has_columns(plain) else {}
        target = "prdp.prompts.any_file.open_prompts"
        chosen.sections.setdefault(key, {})[name] = {TARGET: target, "path": plain, **columns}
    elif key != "prompts" and re.fullmatch(r"\w+(\.\w+)+", plain):
        name = name or plain.rpartition(".")[2]
        target = "prdp.rewards.python_callable.PythonCallable"
        chosen.sections.setdefault(key, {})[name] = {TARGET: target, "path": plain}
    else:
        kind = "prompt set" if key == "prompts" else "reward"
        also = "a file of prompts" if key == "prompts" else "the dotted path of a function"
        takes = f"it takes {', '.join(options)}, or {also}"
        hint = did_you_mean(option, options) or f"; {takes}"
        raise ConfigError(f"{key}: there is no {kind} '{plain}'{hint}")
    if name in chosen.names.setdefault(key, []):
        raise ConfigError(f"{key}: two are called '{name}'; name them, as in {key}=[first:{option},...]")
    chosen.names[key].append(name)


def _settings_of(runs: Sequence[TrainedRun], rest: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """How the first run draws, where the command line says nothing."""
    first = runs[0]
    config = first.config
    keys = _keys_in(rest)
    taken: dict[str, Any] = {} if "autocast" in keys else {"autocast": config.learner.autocast}
    notes = []
    if "sampler" not in keys:
        taken["sampler"] = dataclasses.asdict(config.sampler)
        spacing = config.sampler.timestep_spacing or "the checkpoint's"
        notes.append(
            f"sampler as in {first.folder}: {config.sampler.kind}, {config.sampler.steps} steps, guidance "
            f"{config.sampler.guidance_scale:g}, {spacing} spacing (sampler=... or sampler.steps=... changes it)"
        )
        others = [run for run in runs if _image_settings(run) != _image_settings(first)]
        notes += [f"{run.folder} was trained with another sampler than that" for run in others]
    if "model" not in keys:
        taken["model"] = dataclasses.asdict(config.model)
        notes.append(f"base is {_start_of(config.model)}, what {first.folder} was trained from")
        others = [run for run in runs if _start_of(run.config.model) != _start_of(config.model)]
        notes += [f"{run.folder} was trained from {_start_of(run.config.model)}, not from base" for run in others]
    return taken, notes


def _judging_of(
    runs: Sequence[TrainedRun],
    lists: Mapping[str, Sequence[str]],
    rest: Sequence[str],
    watched: Sequence[str],
) -> tuple[dict[str, Any], list[str]]:
    """What runs are judged by where the command line says nothing: how many images of the first, rewards and prompts of
    all.

    Args:
        watched: names of the rewards that are watched.
    """
    config = runs[0].config
    taken: dict[str, Any] = {
        "prompts_per_set": config.evaluation.final_prompts,
        "images_per_prompt": config.evaluation.images_per_prompt,
        "seeds": [config.evaluation.seed],
        "prompt_seed": config.evaluation.seed,
    }
    notes = []
    sections = [(run.folder, "reward", run.config.reward) for run in runs if "rewards" not in lists]
    sections += [(run.folder, "prompts.heldout", run.config.prompts.heldout) for run in runs if "prompts" not in lists]
    check_trust(sections, trusted_folders(lists.get("trust", ())))
    if "rewards" not in lists:
        taken["rewards"] = _distinct([(run.reward_name, run.config.reward) for run in runs], watched)
        names = dict.fromkeys(run.reward_name for run in runs)
        notes.append(f"rewards that the runs were trained on: {', '.join(names)}")
    if "prompts" not in lists:
        taken["prompts"] = _distinct([(run.prompts_name, run.config.prompts.heldout) for run in runs])
        notes.append(f"held-out prompts of the runs: {', '.join(taken['prompts'])}")
    keys = _keys_in(rest)
    return {key: value for key, value in taken.items() if key not in keys}, notes


def _keys_in(words: Sequence[str]) -> set[str]:
    return {word.lstrip("+~").partition("=")[0] for word in words}


def _start_of(model: ModelConfig) -> str:
    """A model and its frozen adapters, for people."""
    named = [f"{path} x {weight:g}" if weight != 1 else path for path, weight in model_adapters(model)]
    return f"{model.path} with {', '.join(named)}" if named else model.path


def _image_settings(run: TrainedRun) -> dict[str, Any]:
    sampler = dataclasses.asdict(run.config.sampler)
    return {key: value for key, value in sampler.items() if key not in ("microbatch", "prompts_per_chunk")}


def _distinct(named: Sequence[tuple[str, Mapping[str, Any]]], taken: Sequence[str] = ()) -> dict[str, Any]:
    """Sections that differ, each under a name of its own; names that are taken get `_TRAINED` behind them."""
    found: dict[str, Any] = {}
    for name, section in named:
        plain = dict(section)
        if plain in found.values():
            continue
        stem = f"{name}{_TRAINED}" if name in taken else name
        number = 2
        free = stem
        while free in found:
            free, number = f"{stem}_{number}", number + 1
        found[free] = plain
    return found


def _check_names(key: str, names: Sequence[str], words: Sequence[str]) -> None:
    """Refuse arguments of a reward or prompt set that is not among those chosen."""
    for word in words:
        parts = word.lstrip("+~").partition("=")[0].split(".")
        if parts[0] == key and len(parts) > 1 and parts[1] not in names:
            taken = ", ".join(names) or "none"
            hint = did_you_mean(parts[1], names)
            raise ConfigError(f"{word}: '{parts[1]}' is not among {key} ({taken}){hint}")


def _addressed(word: str, splits: Mapping[str, str]) -> str:
    """`prompts.NAME.KEY=...` as an argument of that half of the option which was chosen."""
    match = re.match(r"([+~]*prompts\.([\w-]+)\.)(?!(train|heldout|shuffle)\b)", word)
    return f"{match[1]}{splits[match[2]]}.{word[match.end() :]}" if match and match[2] in splits else word


def _prepared(plain: dict[str, Any], splits: Mapping[str, str]) -> dict[str, Any]:
    """Reduce the options of the group `prompts`, which have two sources each, to the one that was chosen, and leave out
    rewards of the runs that are watched with the very same arguments.
    """
    chosen = dict(plain.get("prompts") or {})
    for name in splits.keys() & chosen.keys():
        if isinstance(chosen[name], dict):
            chosen[name] = chosen[name].get(splits[name])
    watched = [section for section in (plain.get("watch") or {}).values() if isinstance(section, dict)]
    rewards = {
        name: section
        for name, section in (plain.get("rewards") or {}).items()
        if not (re.search(rf"{_TRAINED}(_\d+)?$", str(name)) and section in watched)
    }
    return {**plain, "prompts": chosen, "rewards": rewards}
