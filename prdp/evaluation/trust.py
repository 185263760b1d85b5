"""What a run folder may ask `prdp evaluate` to build: rewards and prompt sources of this package, and nothing else.

The configuration of a run is data that anybody may have written. Taken from it without further ado are settings, and
sections whose targets stand in `REWARDS` and `PROMPTS`: none of them runs code or contacts an address that its
arguments name. Weights and models are files that are read as tensors, or names on the hub.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prdp.support.errors import ConfigError
from prdp.support.suggest import did_you_mean
from prdp.support.targets import TARGET

CALLABLE = "prdp.rewards.python_callable.PythonCallable"
REMOTE = "prdp.rewards.remote.RemoteReward"
ORIGINALITY = "prdp.rewards.originality.Originality"
UNIFIED_REWARD = "prdp.rewards.unified_reward.UnifiedReward"
READ = {
    ORIGINALITY: {
        "folder": "compares with pictures of a folder",
        "cache": "keeps features in a folder",
    },
    UNIFIED_REWARD: {"instruction": "asks a model by a file"},
}
"""Rewards that read or write what may lie anywhere -> argument -> what is done with it."""
VLM_JUDGE = "prdp.rewards.vlm_judge.VlmJudge"
OTHER_SERVERS = ("prdp.rewards.other_servers.UniRLService", "prdp.rewards.other_servers.FlowGRPOServer")
SERVERS = {
    **dict.fromkeys((REMOTE, *OTHER_SERVERS), ("token_variable", "PRDP_REWARD_TOKEN")),
    VLM_JUDGE: ("key_variable", "PRDP_JUDGE_KEY"),
}
"""Rewards that contact a server -> the argument that names the environment variable of its secret, and its default."""
DATASETS = ("prdp.prompts.hf_dataset.HfDatasetPrompts", "prdp.prompts.any_file.open_prompts")
REWARDS = frozenset(
    f"prdp.rewards.{name}"
    for name in (
        "aesthetic.Aesthetic",
        "blip_vqa.BlipVQA",
        "clipscore.CLIPScore",
        "compressibility.Compressibility",
        "compressibility.Incompressibility",
        "geneval.GenEval",
        "hpsv2.HPSv2",
        "hpsv3.HPSv3",
        "image_quality.ImageQuality",
        "imagereward.ImageReward",
        "ocr.Ocr",
        "originality.Originality",
        "pickscore.PickScore",
        "redness.Redness",
        "safety.Safety",
        "sub_score.SubScore",
        "unified_reward.UnifiedReward",
        "vqa.VQAAlignment",
        "weighted_sum.WeightedSum",
    )
) | {"prdp.worlds.mixtures.reward.QuadraticOfPoint", "prdp.worlds.shapes.reward.ShapesJudge"}
PROMPTS = frozenset(
    f"prdp.prompts.{name}"
    for name in (
        "animals.AnimalPrompts",
        "any_file.open_prompts",
        "csv_file.CsvFilePrompts",
        "dsg.DsgPrompts",
        "hf_dataset.HfDatasetPrompts",
        "json_file.JsonFilePrompts",
        "mixture.MixturePrompts",
        "parquet_file.ParquetFilePrompts",
        "quoted_text.QuotedTextPrompts",
        "text_file.TextFilePrompts",
    )
) | {"prdp.worlds.mixtures.prompts.GaussianMixturePrompts", "prdp.worlds.shapes.prompts.ShapesPrompts"}


def check_trust(sections: Iterable[tuple[Path, str, Any]], trusted: Sequence[Path]) -> None:
    """Refuse sections of runs' configurations that ask for more than data, unless the run's folder is trusted.

    Args:
        sections: (folder of the run, key of the section: 'reward' or 'prompts.heldout', its plain content).
        trusted: folders in or below which anything goes.

    Raises:
        ConfigError: names all that would be run, contacted or read, and how to allow it.
    """
    found: dict[Path, list[str]] = {}
    keys: set[str] = set()
    for folder, key, section in sections:
        allowed = PROMPTS if key.startswith("prompts") else REWARDS
        wishes = [] if is_trusted(folder, trusted) else list(_wishes(folder, key, section, allowed))
        if wishes:
            found.setdefault(folder, []).extend(f"  {wish}" for wish in dict.fromkeys(wishes))
            keys.add("prompts" if key.startswith("prompts") else "rewards")
    if found:
        told = "\n".join("\n".join([f"{folder} asks for more than data:", *wishes]) for folder, wishes in found.items())
        instead = " and ".join(f"{key}=[...]" for key in sorted(keys))
        raise ConfigError(
            f"{told}\nIf you trust who made it, add trust=[{','.join(map(str, found))}]; a folder above will do, too. "
            f"Or give {instead}, which then replaces what the run says"
        )


def more_than_data(folder: Path, key: str, section: Any) -> list[str]:
    """A line for each thing that the section of a reward would run, contact or read; none for one that is data."""
    return list(dict.fromkeys(_wishes(folder, key, section, REWARDS)))


def is_trusted(folder: Path, trusted: Sequence[Path]) -> bool:
    """Whether a folder is one of the trusted ones, or lies in one."""
    place = folder.resolve()
    return any(place == one or one in place.parents for one in trusted)


def trusted_folders(entries: Sequence[str]) -> list[Path]:
    """The folders that trust=[...] names, resolved.

    Raises:
        ConfigError: one that is no folder, with names that resemble it.
    """
    found = []
    for entry in entries:
        folder = Path(entry).expanduser()
        if not folder.is_dir():
            beside = [one.name for one in folder.parent.iterdir()] if folder.parent.is_dir() else []
            raise ConfigError(f"trust: there is no folder {entry}{did_you_mean(folder.name, beside)}")
        found.append(folder.resolve())
    return found


def _wishes(folder: Path, key: str, value: Any, allowed: frozenset[str]) -> Iterator[str]:
    """A line for each thing in a section that is more than data."""
    if isinstance(value, Mapping):
        if TARGET in value:
            yield from _target_wishes(key, value, allowed)
            yield from _file_wishes(folder, key, value)
        for name, inner in value.items():
            if name != TARGET:
                yield from _wishes(folder, f"{key}.{name}", inner, allowed)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _wishes(folder, f"{key}[{number}]", inner, allowed)
    elif isinstance(value, str):
        if "://" in value:
            yield f"{key}={value}: contacts that address"
    elif not (value is None or isinstance(value, bool | int | float)):
        yield f"{key}={value!r}: is a {type(value).__name__}, which no argument takes"


def _target_wishes(key: str, section: Mapping[str, Any], allowed: frozenset[str]) -> Iterator[str]:
    target = section[TARGET]
    if target == CALLABLE:
        yield f"{key}: imports and runs the function {section.get('path')} of your Python path or this folder"
    elif isinstance(target, str) and target in SERVERS:
        variable = section.get(*SERVERS[target])
        token = f", with the content of the environment variable {variable}" if variable else ""
        yield f"{key}: sends images and prompts to {section.get('url')}{token}"
        if str(section.get("rubric") or "").startswith("@"):
            yield f"{key}.rubric={section['rubric']}: sends a file there"
        if section.get("cache"):
            yield f"{key}.cache={section['cache']}: keeps answers in a folder"
    elif not isinstance(target, str) or target not in allowed:
        arguments = ", ".join(f"{name}={value!r}" for name, value in section.items() if name != TARGET)
        yield f"{key}: imports and runs {target}({arguments})"


def _file_wishes(folder: Path, key: str, section: Mapping[str, Any]) -> Iterator[str]:
    """Files outside of the current folder and the run's: prompts, which would be shown, pictures, and instructions."""
    if not isinstance(section[TARGET], str):
        return
    for name, words in READ.get(section[TARGET], {}).items():
        if section.get(name) and _is_elsewhere(folder, Path(str(section[name])).expanduser()):
            yield f"{key}.{name}={section[name]}: {words} outside of the current folder, or a hidden one"
    if section[TARGET] not in PROMPTS:
        return
    paths = section.get("path")
    for path in paths if isinstance(paths, list) else [paths]:
        if not isinstance(path, str) or "://" in path:
            continue
        if section[TARGET] in DATASETS and Path(path).expanduser().is_dir():
            yield f"{key}.path={path}: a folder of the datasets library may name files and addresses anywhere"
        elif any(_is_elsewhere(folder, place) for place in _places(path)):
            yield f"{key}.path={path}: reads a file outside of the current folder, or a hidden one, as prompts"


def _places(path: str) -> Iterator[Path]:
    """A path, and all that it may stand for: what its pattern matches, and what lies in these folders."""
    named = Path(path).expanduser()
    yield named
    for found in map(Path, glob.iglob(str(named), recursive=True)):
        yield found
        if found.is_dir():
            yield from found.rglob("*")


def _is_elsewhere(folder: Path, path: Path) -> bool:
    """Whether a path leads out of the current folder and the run's, or into a hidden place of theirs."""
    place = path.resolve()
    for base in (folder.resolve(), Path.cwd()):
        if place.is_relative_to(base):
            return any(part.startswith(".") for part in place.relative_to(base).parts)
    return True
