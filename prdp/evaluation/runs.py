"""Folders of `prdp train` as `prdp evaluate` reads them: what was trained on what, for how long."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from prdp.config import TrainConfig
from prdp.configure import read_config
from prdp.targets import TARGET
from prdp.tracking.jsonl import METRICS_FILE, read_metrics

CONFIG_FILE = "config.yaml"
_LEAVES = ("weights", "checkpoints", "metrics.jsonl")


@dataclass(frozen=True)
class TrainedRun:
    """A run of `prdp train`.

    Attributes:
        folder: of the run.
        config: that it was run with.
        overrides: of its command line, where Hydra noted them.
        choices: group -> option, likewise.
        epoch: epochs finished, by its log.
        seconds: it was at work.
    """

    folder: Path
    config: TrainConfig
    overrides: tuple[str, ...]
    choices: Mapping[str, str]
    epoch: int | None
    seconds: float

    @property
    def reward_name(self) -> str:
        """A name for the reward it was trained on."""
        return self.choices.get("reward") or section_name(self.config.reward)

    @property
    def prompts_name(self) -> str:
        """A name for its held-out prompts."""
        return self.choices.get("prompts") or section_name(self.config.prompts.heldout)


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


@cache
def read_trained_run(folder: Path) -> TrainedRun:
    """Read a run's folder.

    Raises:
        ConfigError: its configuration is not one that this version takes.
        ValueError: its log is damaged.
    """
    config = read_config(folder / CONFIG_FILE)
    rows = read_metrics(folder) if (folder / METRICS_FILE).is_file() else []
    hydra = _yaml(folder / ".hydra" / "hydra.yaml")
    runtime = hydra.get("hydra", {}).get("runtime", {}) if isinstance(hydra, dict) else {}
    choices = {key: str(value) for key, value in (runtime.get("choices") or {}).items() if value is not None}
    overrides = _yaml(folder / ".hydra" / "overrides.yaml")
    return TrainedRun(
        folder=folder,
        config=config,
        overrides=tuple(map(str, overrides)) if isinstance(overrides, list) else (),
        choices=choices,
        epoch=max((int(row["epoch"]) for row in rows), default=None),
        seconds=max((float(row.get("wall_seconds", 0.0)) for row in rows), default=0.0),
    )


def section_name(section: Mapping[str, Any]) -> str:
    """A name for a section with a `_target_`: its class in small letters; of a function or a file, its own name."""
    path = str(section.get("path", ""))
    last = str(section.get(TARGET, "")).rpartition(".")[2]
    if last == "PythonCallable" and path:
        return path.rpartition(".")[2]
    if path and "Prompts" in last:
        return re.sub(r"\W+", "_", Path(path).stem)
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", last).lower()


def _saved(folder: Path) -> bool:
    return any((folder / "checkpoints").glob("epoch_*/state.json"))


def _yaml(file: Path) -> Any:
    """A YAML file's content; None where there is no such file."""
    if not file.is_file():
        return None
    import yaml

    return yaml.safe_load(file.read_text(encoding="utf-8"))
