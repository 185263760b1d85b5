"""What stands in `models`: base, runs, sweeps, checkpoints, exported weights, diffusers folders, LoRA files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from prdp.checkpoints.checkpoint import FOLDER as CHECKPOINTS
from prdp.checkpoints.checkpoint import STATE_FILE, read_state, tensor_paths
from prdp.collaboration.cascade_files import CASCADE_FILE, THRESHOLD_FILE, is_cascade, read_cascade
from prdp.collaboration.student_files import is_student, read_student
from prdp.config import LearnerConfig, ModelConfig, SamplerConfig
from prdp.configuration.typed import typed
from prdp.diffusion import family_of
from prdp.diffusion.adapter_files import model_adapters
from prdp.diffusion.adapter_tensors import LORA_FILE, PEFT_FILE, adapter_file
from prdp.diffusion.effective_scheduler import is_distilled
from prdp.diffusion.model_folder import (
    INDEX,
    MIXTURES,
    family_in,
    family_on_hub,
    fetch_model,
    is_single_file,
    model_location,
)
from prdp.diffusion.pipeline_formats import FORMATS
from prdp.evaluation.runs import TrainedRun, check_family, is_run, read_trained_run, runs_of_sweep, sweep_labels
from prdp.evaluation.store import file_name
from prdp.experts.gate_files import is_gated, read_gated
from prdp.support.errors import StartError
from prdp.support.suggest import did_you_mean

BASE = "base"
LORA_FILES = (LORA_FILE, PEFT_FILE)
FEW_STEPS = SamplerConfig(kind="consistency", steps=4, guidance_scale=1.0)
"""Of folders with an LCMScheduler whose steps nobody tells."""
_NAMED = re.compile(r"(\w[\w .+=-]*):(.+)")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_DIGESTED = (".json", ".txt", ".safetensors", ".model")


@dataclass(frozen=True)
class EvaluatedModel:
    """One model to judge.

    Attributes:
        name: as it stands in tables.
        kind: 'pipeline' (a whole model), 'lora' (a file applied to `model`), 'checkpoint' (of `prdp train`), 'gated'
            (of `prdp gate`) or 'cascade' (of `prdp calibrate`, whose teacher is `model`).
        model: the pipeline, or what the LoRA file, the checkpoint or the experts were trained from.
        path: of the LoRA file, or the folder of the checkpoint or gated model; None for a pipeline.
        run: the run it comes from, where that is known.
        epoch: epochs of training behind it, where that is known.
        learner, seed: of a checkpoint's run, which its tensors fit.
        sampler: its own, of models that are distilled to few steps; None for those that draw as they are told to.
    """

    name: str
    kind: str
    model: ModelConfig
    path: Path | None = None
    run: TrainedRun | None = None
    epoch: int | None = None
    learner: LearnerConfig | None = None
    seed: int = 0
    sampler: SamplerConfig | None = None

    def shares_noise_with(self, other: EvaluatedModel) -> bool:
        """Whether both start from the same noise, which has the shape of their latents."""
        return self.model == other.model or _latent_shape(self.model) == _latent_shape(other.model)

    @property
    def start(self) -> str | None:
        """The LoRA that training went on from, which its reference has; None for those that started anew."""
        if self.kind == "lora":
            return None if self.run is None else self.run.config.learner.init_adapter
        return None if self.learner is None else self.learner.init_adapter

    @property
    def source(self) -> str:
        """Where the weights come from, for people."""
        return self.model.path if self.path is None else f"{self.path}"


def find_models(
    entries: Sequence[str], base: ModelConfig | None, size: Mapping[str, int | None] | None = None
) -> list[EvaluatedModel]:
    """The models that the entries name, in order, sweeps and folders of checkpoints unfolded.

    Args:
        entries: 'base' or '[name:]path'.
        base: what 'base' means and what LoRA files are applied to; None where nothing says so.
        size: those of height and width that every model draws in, whatever it was trained in.

    Raises:
        StartError: an entry that is none of these, files that are missing, or two models of one name.
    """
    found = [replace(model, model=_sized(model.model, size or {})) for model in named_models(entries, base)]
    found = [_with_its_sampler(model, base) for model in found]
    # Images lie in folders that are called after the models, on file systems that may not tell 'A' from 'a'.
    by_folder: dict[str, list[EvaluatedModel]] = {}
    for model in found:
        by_folder.setdefault(file_name(model.name).casefold(), []).append(model)
    for alike in by_folder.values():
        if len(alike) > 1:
            same = ", ".join(f"{model.name}: {model.source}" for model in alike)
            raise StartError(f"models: two are called alike ({same}); name them, as in models=[first:path,...]")
    for model in found:
        if model.model.path == MIXTURES:
            raise StartError(
                f"models: {model.name}: the model {MIXTURES} draws no pictures, so there is nothing to evaluate; "
                "give runs, checkpoints, LoRA files, diffusers folders or hub ids of Stable Diffusion"
            )
        family_of(model.model).check(model.model)
    return found


def named_models(entries: Iterable[str], base: ModelConfig | None) -> list[EvaluatedModel]:
    """Likewise, without a look at what the models consist of: of a LoRA the base need not be there.

    Raises:
        StartError: an entry that is none of these.
    """
    found: list[EvaluatedModel] = []
    for entry in entries:
        name, path = split_name(entry)
        found += _found(entry, name, path, base)
    return found


def split_name(entry: str) -> tuple[str | None, str]:
    """'name:path' as (name, path); the name is None where there is none."""
    match = _NAMED.fullmatch(entry)
    return (match[1], match[2]) if match and not Path(entry).exists() else (None, entry)


def check_exists(entry: str) -> None:
    """Refuse an entry of models that names nothing on this machine and cannot be a name on the hub.

    Raises:
        StartError: with names beside it that resemble it.
    """
    path = split_name(entry)[1]
    folder = Path(path).expanduser()
    if path == BASE or folder.exists() or _may_be_on_hub(path):
        return
    beside = [one.name for one in folder.parent.iterdir()] if folder.parent.is_dir() else []
    raise StartError(f"models: {entry}: there is no {folder}{did_you_mean(folder.name, [*beside, BASE])}")


def _may_be_on_hub(path: str) -> bool:
    """Whether a path that is not there may be owner/name: not where a folder of the owner's name is."""
    folder = Path(path).expanduser()
    plain = _HUB_ID.fullmatch(path) is not None and not path.startswith(("runs/", "./", "../"))
    return plain and not folder.exists() and not folder.parent.is_dir()


def runs_among(entries: Iterable[str]) -> list[TrainedRun]:
    """The runs behind the entries, in order; those that name none are passed over."""
    runs = []
    for entry in entries:
        path = Path(split_name(entry)[1]).expanduser()
        for folder in (path, path.parent, path.parent.parent):
            if is_run(folder):
                runs.append(read_trained_run(folder))
                break
        else:
            runs += [read_trained_run(folder) for folder in runs_of_sweep(path)]
    return runs


def model_digest(model: EvaluatedModel) -> str:
    """Changes with the weights and configuration files that the model consists of."""
    digest = hashlib.blake2b(digest_size=12)
    pipeline = model.model
    where = pipeline.revision, pipeline.variant, pipeline.family
    if is_single_file(pipeline.path):
        assert pipeline.config is not None
        digest.update(_file_digest(Path(model_location(pipeline.path))).encode())
        digest.update(_pipeline_digest(pipeline.config, *where).encode())
    else:
        digest.update(_pipeline_digest(pipeline.path, *where).encode())
    sizes = (pipeline.height, pipeline.width, pipeline.max_sequence_length)
    if sizes != (None, None, None):
        digest.update(f"{sizes}|".encode())
    for path, weight in model_adapters(pipeline):
        digest.update(f"adapter {weight:g} {_file_digest(adapter_file('model.adapters', path))}|".encode())
    if model.start is not None and Path(model.start).expanduser().exists():
        digest.update(f"start {_file_digest(adapter_file('learner.init_adapter', model.start))}|".encode())
    if model.kind == "lora":
        assert model.path is not None
        digest.update(_file_digest(model.path).encode())
    elif model.kind == "gated":
        assert model.path is not None
        for file in read_gated(model.path).files():
            digest.update(f"gated {_file_digest(file)}|".encode())
    elif model.kind == "cascade":
        from prdp.evaluation.cascades import parts_of

        assert model.path is not None
        for file in (model.path / CASCADE_FILE, model.path / THRESHOLD_FILE):
            digest.update(f"cascade {_file_digest(file)}|".encode())
        digest.update("|".join(model_digest(one) for one in parts_of(read_cascade(model.path))).encode())
    elif model.kind == "checkpoint":
        assert model.path is not None and model.learner is not None
        for file in tensor_paths(model.path, read_state(model.path)):
            digest.update(_file_digest(file).encode())
    return digest.hexdigest()


def _found(entry: str, name: str | None, path: str, base: ModelConfig | None) -> list[EvaluatedModel]:
    if path == BASE:
        return [EvaluatedModel(name or BASE, "pipeline", _needed(base, entry))]
    folder = Path(path).expanduser()
    if is_gated(folder):
        return [EvaluatedModel(name or _short(folder), "gated", read_gated(folder).model, folder)]
    if is_cascade(folder):
        from prdp.evaluation.cascades import check_reward_of

        cascade = read_cascade(folder)
        check_reward_of(folder, cascade.reward)
        teacher = cascade.teacher
        return [EvaluatedModel(name or _short(folder), "cascade", teacher.model, folder, sampler=teacher.sampler)]
    if is_student(folder):
        return [_of_student(name or _short(folder), folder)]
    if is_run(folder):
        return [_of_run(entry, name or _short(folder), folder)]
    if (folder / STATE_FILE).is_file():
        return [_of_checkpoint(name, folder)]
    if checkpoints := _checkpoints(folder):
        return [_of_checkpoint(f"{name}/{one.name}" if name else None, one) for one in checkpoints]
    if (folder / INDEX).is_file():
        run = _run_around(folder)
        like = run.config.model if run is not None else base or ModelConfig()
        model = _like(like, str(folder), family_in(folder) or like.family)
        return [EvaluatedModel(name or _short(folder), "pipeline", model, run=run, epoch=run.epoch if run else None)]
    lora = folder if folder.suffix == ".safetensors" else _lora_in(folder)
    if lora is not None and lora.is_file():
        run = _run_around(folder)
        model = run.config.model if run is not None else _needed(base, entry)
        epoch = run.epoch if run is not None else None
        return [EvaluatedModel(name or _short(folder), "lora", model, lora, run, epoch)]
    if sweep := runs_of_sweep(folder):
        labels = sweep_labels([read_trained_run(one) for one in sweep])
        prefix = f"{name}/" if name else ""
        return [_of_run(entry, prefix + label, one) for label, one in zip(labels, sweep, strict=True)]
    if _may_be_on_hub(path):
        like = base or ModelConfig()
        return [EvaluatedModel(name or path, "pipeline", _like(like, path, family_on_hub(path) or like.family))]
    check_exists(entry)
    raise StartError(
        f"models: {entry}: {folder} is neither the folder of a run or sweep (config.yaml), nor a checkpoint "
        f"({STATE_FILE}), nor a diffusers folder ({INDEX}), nor a LoRA ({' or '.join(LORA_FILES)}, *.safetensors)"
    )


def _sized(model: ModelConfig, size: Mapping[str, int | None]) -> ModelConfig:
    return replace(model, height=size.get("height", model.height), width=size.get("width", model.width))


def _like(model: ModelConfig, path: str, family: str) -> ModelConfig:
    """A whole pipeline elsewhere, which has no adapters; of a model of the same family it takes the sizes too."""
    if family == model.family:
        return replace(model, path=path, config=None, revision=None, variant=None, adapters=[], adapter_weights=[])
    return ModelConfig(family=family, path=path, dtype=model.dtype, device=model.device)


def _of_run(entry: str, name: str, folder: Path) -> EvaluatedModel:
    """The exported weights of a run; its newest checkpoint while it has none."""
    run = read_trained_run(folder)
    weights = folder / "weights"
    if (weights / INDEX).is_file():
        model = _like(run.config.model, str(weights), run.config.model.family)
        return EvaluatedModel(name, "pipeline", model, run=run, epoch=run.epoch)
    lora = _lora_in(weights)
    if lora is not None:
        return EvaluatedModel(name, "lora", run.config.model, lora, run, run.epoch)
    checkpoints = _checkpoints(folder / CHECKPOINTS)
    if not checkpoints:
        raise StartError(f"models: {entry}: the run {folder} has neither weights nor checkpoints yet")
    return _of_checkpoint(name, checkpoints[-1])


def _of_student(name: str, folder: Path) -> EvaluatedModel:
    """What `prdp distill` wrote: a whole pipeline, or a LoRA of the base."""
    student, weights = read_student(folder), folder / "weights"
    if (weights / INDEX).is_file():
        model = _like(student.model, str(weights), student.model.family)
        return EvaluatedModel(name, "pipeline", model, sampler=student.sampler)
    lora = _lora_in(weights)
    if lora is None:
        raise StartError(f"models: {folder}: the student has no weights in {weights}; distill it again")
    return EvaluatedModel(name, "lora", student.model, lora, sampler=student.sampler)


def _with_its_sampler(model: EvaluatedModel, base: ModelConfig | None) -> EvaluatedModel:
    """With the sampler of its run, or of its folder, if that is one of few steps; the base draws as it is told to."""
    is_base = model.kind == "pipeline" and base is not None and model.model.path == base.path
    if model.sampler is not None or is_base:
        return model
    if model.run is not None and model.run.config.sampler.kind == "consistency":
        return replace(model, sampler=model.run.config.sampler)
    if model.run is None and model.kind == "pipeline" and is_distilled(model.model):
        return replace(model, sampler=FEW_STEPS)
    return model


def _of_checkpoint(name: str | None, folder: Path) -> EvaluatedModel:
    try:
        document = read_state(folder)
        config = typed(document["state"]["config"])
        epoch = document["epoch"]
    except (ValueError, KeyError, TypeError) as error:
        raise StartError(f"models: {folder / STATE_FILE} is not the state of a checkpoint: {error}") from error
    for file in tensor_paths(folder, document):
        if not file.is_file():
            raise StartError(f"models: {folder} is not whole: {file.name} is missing")
    check_family(config.model, folder)
    run = _run_around(folder)
    if name is None:
        name = f"{_short(run.folder)}/{folder.name}" if run is not None else folder.name
    return EvaluatedModel(name, "checkpoint", config.model, folder, run, epoch, config.learner, config.seed)


def _checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, by ascending epoch."""
    return sorted(file.parent for file in folder.glob(f"epoch_*/{STATE_FILE}"))


def _lora_in(folder: Path) -> Path | None:
    return next((folder / name for name in LORA_FILES if (folder / name).is_file()), None)


def _run_around(folder: Path) -> TrainedRun | None:
    """The run that exported weights or a checkpoint lie in."""
    inside = [parent for parent in (folder.parent, folder.parent.parent) if is_run(parent)]
    return read_trained_run(inside[0]) if inside else None


def _needed(base: ModelConfig | None, entry: str) -> ModelConfig:
    if base is None:
        raise StartError(
            f"models: {entry}: which model is the base? Give model.path=<folder> (model=shapes for the embedded one), "
            "or a run folder among models"
        )
    return base


def _short(path: Path) -> str:
    """A name from a path: its last part, with the part above where the last says little."""
    plain = path.expanduser().resolve()
    part = plain.with_suffix("") if plain.suffix == ".safetensors" else plain
    telling = part.parent.name if part.name == "weights" or part.name in (Path(f).stem for f in LORA_FILES) else ""
    if telling:
        return telling
    dated = re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", part.name)
    return f"{part.parent.name}/{part.name}" if dated or part.name.isdigit() else part.name


def _latent_shape(model: ModelConfig) -> tuple[int, ...]:
    return family_of(model).latent_shape_of(model)


def _pipeline_digest(path: str, revision: str | None, variant: str | None, family: str) -> str:
    folder = _fetched(path, revision, variant, family)
    digest = hashlib.blake2b(digest_size=12)
    for file in sorted(folder.rglob("*")):
        inside = file.relative_to(folder)
        skipped = len(inside.parts) > 2 or inside.parts[0] == "safety_checker" or file.suffix not in _DIGESTED
        if file.is_file() and not skipped:
            digest.update(f"{inside.as_posix()}|{_file_digest(file)}|".encode())
    digest.update(str(variant).encode())
    return digest.hexdigest()


@cache
def _fetched(path: str, revision: str | None, variant: str | None, family: str) -> Path:
    return fetch_model(path, variant, revision, next(one for one in FORMATS if one.family == family))


def _file_digest(file: Path) -> str:
    """Read once, and again when the file has changed: a student may be distilled anew in a process that lives on."""
    status = file.stat()
    return _content_digest(file, status.st_size, status.st_mtime_ns)


@cache
def _content_digest(file: Path, size: int, modified: int) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, lambda: hashlib.blake2b(digest_size=12)).hexdigest()
