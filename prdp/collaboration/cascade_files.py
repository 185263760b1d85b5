"""The folder of a cascade: which student and teacher, what the estimator is, what becomes of what it thinks little of.

cascade.json     the parts, and how each draws
threshold.json   see `prdp.calibration`: bound to the student, the estimator, the student's sampler and the prompts
prompts.safetensors  of `strategy=skip`: what tells the student's score from a prompt
samples/         the student's images that the threshold was fitted on, and their scores
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prdp.collaboration.cascade import Strategy
from prdp.config import FAMILIES, ModelConfig, SamplerConfig
from prdp.support.errors import ConfigError, StartError
from prdp.support.json_lines import load_json
from prdp.support.plain_yaml import literal
from prdp.support.storage import write_atomically

CASCADE_FILE, THRESHOLD_FILE, ESTIMATOR_FILE = "cascade.json", "threshold.json", "prompts.safetensors"
_FORMAT = 1


@dataclass(frozen=True)
class Part:
    """The student or the teacher.

    Attributes:
        entry: as prdp evaluate takes models.
        model: its pipeline.
        sampler: that it draws with; of a refining teacher the whole chain's.
    """

    entry: str
    model: ModelConfig
    sampler: SamplerConfig


@dataclass(frozen=True)
class Cascade:
    """What stands in cascade.json.

    Attributes:
        base: the model called 'base'.
        student, teacher: the parts.
        first: step that the teacher begins at.
        reward: section of the estimator.
        scorer: its identity.
        strategy: what becomes of what is below the threshold.
        prompts: digest of the prompts that the threshold was fitted on.
        expected: digest of what tells scores from prompts; None where images are scored.
    """

    base: ModelConfig
    student: Part
    teacher: Part
    first: int
    reward: Mapping[str, Any]
    scorer: Mapping[str, Any]
    strategy: Strategy
    prompts: str
    expected: str | None = None

    def digests(self, student: str) -> dict[str, str]:
        """What the threshold is bound to.

        Args:
            student: digest of its weights.
        """
        scorer: dict[str, Any] = {"section": self.reward, "identity": self.scorer}
        if self.expected is not None:
            scorer["expected"] = self.expected
        drawing = {**dataclasses.asdict(self.student.sampler), "microbatch": None, "prompts_per_chunk": None}
        if self.student.sampler.negative_prompt is None:  # as thresholds of versions without the key have it
            del drawing["negative_prompt"]
        return {
            "model": student,
            "scorer": _digest(scorer),
            "sampler": _digest(drawing),
            "prompts": self.prompts,
        }


def is_cascade(folder: Path) -> bool:
    """Whether a folder is that of a cascade."""
    return (folder / CASCADE_FILE).is_file()


def read_cascade(folder: Path) -> Cascade:
    """Read what a cascade is.

    Raises:
        StartError: the file is damaged or of another format.
        ConfigError: a model that is a class of somebody's own.
    """
    from omegaconf.errors import OmegaConfBaseException

    file = folder / CASCADE_FILE
    try:
        document = load_json(file.read_text(encoding="utf-8"))
        if document["format"] != _FORMAT:
            raise StartError(f"models: {file}: format={document['format']}: this version reads format {_FORMAT}")
        found = Cascade(
            base=_typed(ModelConfig, document["base"]),
            student=_part(document["student"]),
            teacher=_part(document["teacher"]),
            first=int(document["first"]),
            reward=dict(document["reward"]),
            scorer=dict(document["scorer"]),
            strategy=_typed(Strategy, document["strategy"]),
            prompts=str(document["prompts"]),
            expected=document.get("expected"),
        )
    except (ValueError, KeyError, TypeError, OSError, OmegaConfBaseException) as error:
        if isinstance(error, StartError):
            raise
        raise StartError(f"models: {file} is damaged: {error}") from error
    for model in (found.base, found.student.model, found.teacher.model):
        if model.family not in FAMILIES:
            raise ConfigError(
                f"models: {file}: model.family={model.family} is a class of its maker's own, which is not run; "
                f"evaluated are the families {', '.join(FAMILIES)}"
            )
    return found


def write_cascade(folder: Path, cascade: Cascade) -> None:
    """Write cascade.json."""
    document = {"format": _FORMAT, **dataclasses.asdict(cascade)}
    write_atomically(folder / CASCADE_FILE, (json.dumps(document, indent=2) + "\n").encode())


def _part(document: Mapping[str, Any]) -> Part:
    sampler = _typed(SamplerConfig, document["sampler"])
    return Part(str(document["entry"]), _typed(ModelConfig, document["model"]), sampler)


def _typed(kind: type, values: Any) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), literal(values)))


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True, default=str).encode(), digest_size=12).hexdigest()
