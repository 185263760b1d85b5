"""Folders of `prdp train` as `prdp evaluate` reads them: what was trained on what, for how long."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from prdp.checkpoints.compatible import flat
from prdp.config import FAMILIES, MISSING, ModelConfig, TrainConfig
from prdp.configuration.typed import conf_folder, read_config
from prdp.support.errors import ConfigError
from prdp.support.plain_yaml import load_yaml
from prdp.support.targets import TARGET
from prdp.tracking.jsonl import METRICS_FILE, read_metrics

CONFIG_FILE = "config.yaml"
_NAMELESS = ("callable", "file", "text_file", "hf_dataset", "sub_score")
"""Options that stand for whatever their `path` names, or their `name`."""
_LONGEST_LABEL = 120
_LEAVES = ("weights", "checkpoints", "metrics.jsonl")


@dataclass(frozen=True)
class TrainedRun:
    """A run of `prdp train`.

    Attributes:
        folder: of the run.
        config: that it was run with.
        epoch: epochs finished, by its log.
        seconds: it was at work.
    """

    folder: Path
    config: TrainConfig
    epoch: int | None
    seconds: float

    @property
    def reward_name(self) -> str:
        """A name for the reward it was trained on."""
        return _option("reward", (), self.config.reward) or section_name(self.config.reward)

    @property
    def prompts_name(self) -> str:
        """A name for its held-out prompts."""
        heldout = self.config.prompts.heldout
        return _option("prompts", ("heldout",), heldout) or section_name(heldout)


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a training run, finished or not."""
    return (folder / CONFIG_FILE).is_file() and any((folder / leaf).exists() for leaf in _LEAVES)


def runs_of_sweep(folder: Path) -> list[Path]:
    """The runs in the folder of a sweep, by their number; empty for another folder. Jobs that left no weights are
    passed over.
    """
    if not folder.is_dir():
        return []
    inside = [one for one in folder.iterdir() if is_run(one) and ((one / "weights").exists() or _saved(one))]
    return sorted(inside, key=lambda one: (int(one.name) if one.name.isdigit() else 1 << 31, one.name))


def check_family(model: ModelConfig, place: Path) -> None:
    """Refuse a run or a checkpoint whose model is a class of somebody's own: building it would run their code.

    Raises:
        ConfigError: names the class.
    """
    if model.family not in FAMILIES:
        raise ConfigError(
            f"{place}: model.family={model.family} is a class of its maker's own, which is not run; evaluated are the "
            f"families {', '.join(FAMILIES)}"
        )


def read_trained_run(folder: Path) -> TrainedRun:
    """Read a run's folder; once, and again when it has changed, as a run that goes on does.

    Raises:
        ConfigError: its configuration is not one that this version takes.
        ValueError: its log is damaged.
    """
    return _trained_run(folder, folder.absolute(), *(_state(folder / name) for name in (CONFIG_FILE, METRICS_FILE)))


def _state(file: Path) -> tuple[int, int] | None:
    """What changes with a file's content: its size and when it was written; None where there is no file."""
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return status.st_size, status.st_mtime_ns


@cache
def _trained_run(folder: Path, place: Path, *states: tuple[int, int] | None) -> TrainedRun:
    config = read_config(folder / CONFIG_FILE)
    check_family(config.model, folder)
    rows = read_metrics(folder) if (folder / METRICS_FILE).is_file() else []
    return TrainedRun(
        folder=folder,
        config=config,
        epoch=max((int(row["epoch"]) for row in rows), default=None),
        seconds=max((float(row.get("wall_seconds", 0.0)) for row in rows), default=0.0),
    )


def section_name(section: Mapping[str, Any]) -> str:
    """A name for a section with a `_target_`: its class in small letters; of functions, files and aspects their own."""
    path = str(section.get("path", ""))
    last = str(section.get(TARGET, "")).rpartition(".")[2]
    if last == "PythonCallable" and path:
        return path.rpartition(".")[2]
    if last == "SubScore" and section.get("name"):
        return re.sub(r"\W+", "_", str(section["name"]))
    if path and "prompts" in last.lower():
        return re.sub(r"\W+", "_", Path(path).stem)
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", last).lower()


def sweep_labels(runs: Sequence[TrainedRun]) -> list[str]:
    """What tells the runs of a sweep apart: the keys of their configurations that differ, else their folders' names."""
    flats = [_described(run) for run in runs]
    keys = dict.fromkeys(key for flat in flats for key in flat)
    telling = [key for key in keys if len({repr(flat.get(key)) for flat in flats}) > 1]
    # A section that has another name is another one, whatever its arguments.
    telling = [key for key in telling if not any(key.startswith(f"{named}.") for named in telling)]
    labels = [",".join(f"{key}={flat[key]}" for key in telling if key in flat) for flat in flats]
    plain = [re.sub(r"\b(reward|prompts)=", "", label) for label in labels]
    best = plain if len(set(plain)) == len(plain) else labels
    told = all(0 < len(label) <= _LONGEST_LABEL for label in best) and len(set(best)) == len(best)
    return best if told else [run.folder.name for run in runs]


def _described(run: TrainedRun) -> dict[str, Any]:
    """Dotted keys -> values of a run's configuration, and the names of its reward, prompts and objective."""
    plain = dataclasses.asdict(run.config)
    del plain["output_dir"]
    prompts = plain.pop("prompts")
    names = {"reward": run.reward_name, "prompts": run.prompts_name, "objective": run.config.objective.get("name")}
    return {**names, **flat({**plain, "prompts": prompts})}


@cache
def _options(group: str, inside: tuple[str, ...]) -> Mapping[str, Mapping[str, Any]]:
    """Option of a group of the package -> its flat keys, under a key of it."""
    found = {}
    for file in sorted((conf_folder() / group).glob("*.yaml")):
        section = load_yaml(file)
        for key in inside:
            section = section.get(key, {})
        found[file.stem] = flat(section)
    return found


def _option(group: str, inside: tuple[str, ...], section: Mapping[str, Any]) -> str | None:
    """The option that a section stems from: of those with its target, the one that shares most of its arguments.

    None where several fit that are not the same, as for sections that read whatever file they are given.
    """
    own, options = flat(section), _options(group, inside)
    shared = {
        name: sum(own.get(key) == value for key, value in option.items())
        for name, option in options.items()
        if option.get(TARGET) == own.get(TARGET) and name not in _NAMELESS
    }
    best = sorted((name for name, count in shared.items() if count == max(shared.values())), key=len)
    alike = all(options[name] == options[best[0]] for name in best)
    return best[0] if best and (len(best) == 1 or (alike and MISSING not in options[best[0]].values())) else None


def _saved(folder: Path) -> bool:
    return any((folder / "checkpoints").glob("epoch_*/state.json"))
