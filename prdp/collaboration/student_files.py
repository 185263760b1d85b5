"""The folder of a distilled student: its weights in diffusers format, and how it draws.

student.json     the base, the sampler that it was distilled for, its teacher and the trajectories that it learned from
weights/         a pipeline or a LoRA file, with the configuration of an LCMScheduler
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prdp.config import FAMILIES, ModelConfig, SamplerConfig
from prdp.support.errors import ConfigError, StartError
from prdp.support.json_lines import load_json
from prdp.support.plain_yaml import literal
from prdp.support.storage import write_atomically

STUDENT_FILE = "student.json"
_FORMAT = 1


@dataclass(frozen=True)
class Student:
    """What stands in a student's folder.

    Attributes:
        model: the base, which a LoRA is applied to.
        sampler: that it is to draw with.
    """

    model: ModelConfig
    sampler: SamplerConfig


def is_student(folder: Path) -> bool:
    """Whether a folder is that of a distilled student."""
    return (folder / STUDENT_FILE).is_file()


def read_student(folder: Path) -> Student:
    """Read what a student is; of its weights nothing.

    Raises:
        StartError: the file is damaged or of another format.
        ConfigError: the model is a class of somebody's own.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    file = folder / STUDENT_FILE
    try:
        document = load_json(file.read_text(encoding="utf-8"))
        if document["format"] != _FORMAT:
            raise StartError(f"models: {file}: format={document['format']}: this version reads format {_FORMAT}")
        model, sampler = (
            OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), literal(document[key])))
            for key, kind in (("model", ModelConfig), ("sampler", SamplerConfig))
        )
    except (ValueError, KeyError, TypeError, OSError, OmegaConfBaseException) as error:
        if isinstance(error, StartError):
            raise
        raise StartError(f"models: {file} is damaged: {error}") from error
    assert isinstance(model, ModelConfig) and isinstance(sampler, SamplerConfig)
    if model.family not in FAMILIES:
        raise ConfigError(
            f"models: {file}: model.family={model.family} is a class of its maker's own, which is not run; evaluated "
            f"are the families {', '.join(FAMILIES)}"
        )
    return Student(model, sampler)


def write_student(folder: Path, student: Student, facts: Mapping[str, Any]) -> None:
    """Write what a student is into a folder that is there.

    Args:
        facts: how it came about, for people.
    """
    document = {"format": _FORMAT, **dataclasses.asdict(student), **facts}
    write_atomically(folder / STUDENT_FILE, (json.dumps(document, indent=2) + "\n").encode())
