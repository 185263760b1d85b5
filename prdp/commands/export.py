"""`prdp export`: the weights of a run, from any of its checkpoints, in the format that somebody wants them in."""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prdp import __version__
from prdp.checkpoints.best import SCORE
from prdp.checkpoints.checkpoint import FOLDER as CHECKPOINTS
from prdp.checkpoints.checkpoint import CheckpointError, best_checkpoint
from prdp.checkpoints.run_folder import check_empty
from prdp.config import ModelConfig
from prdp.diffusion.pipeline_formats import FLUX, STABLE_DIFFUSION_3, Z_IMAGE
from prdp.diffusion.pipeline_formats import FORMATS as FORMATS_OF_FOLDERS
from prdp.evaluation.models import EvaluatedModel, named_models
from prdp.evaluation.runs import TrainedRun, is_run, read_trained_run
from prdp.experts.gate_files import is_gated
from prdp.experts.names import is_of_text_encoder
from prdp.support.errors import ConfigError, StartError
from prdp.support.suggest import did_you_mean

FORMATS = ("diffusers", "kohya", "peft", "merged", "single_file")
SINGLE_FILE = "model.safetensors"
PROGRAM = "use_it.py"
_ATTEMPTS = 4
_FAMILIES = tuple(one.family for one in FORMATS_OF_FOLDERS)
_WITH_T5 = (STABLE_DIFFUSION_3.family, FLUX.family)
_EVALUATING = """\
for part in pipeline.components.values():
    if isinstance(part, torch.nn.Module):
        part.eval()  # of one file diffusers leaves T5 as for training, and it drops states out"""
_KOHYA_SD3 = (
    "* ComfyUI and kohya's programs load this file. diffusers does not read kohya's names of Stable Diffusion 3: take "
    "`prdp export --format diffusers` for it."
)
_KOHYA_TEXT = (
    "* ComfyUI and kohya's programs load this file. Of text encoders diffusers reads kohya's names of attention only "
    "where out_proj is among them: take `prdp export --format diffusers` for it."
)
_PEFT = """\
from peft import PeftModel
pipeline.{network} = PeftModel.from_pretrained(pipeline.{network}, weights)"""
_PEFT_TEXT = 'pipeline.{encoder} = PeftModel.from_pretrained(pipeline.{encoder}, weights + "/{encoder}")'
_HELP = """\
Works on runs that go on, were interrupted or are finished; the run is not touched.

formats
  diffusers   a LoRA file; of full weights a whole pipeline
  kohya       a LoRA file with the names of kohya's trainers
  peft        a folder for PeftModel.from_pretrained, with one in it for each text encoder that learned
  merged      a whole pipeline with the LoRA in its weights
  single_file the same in one file, as its authors name the tensors
"""


def main(arguments: Sequence[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="prdp export",
        description="Write the weights of a run, with a model card and a program that uses them.",
        epilog=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of prdp train")
    parser.add_argument(
        "--checkpoint",
        metavar="EPOCH",
        help="10, epoch_00010, newest or best; without, what the run ended with, or the newest",
    )
    parser.add_argument("--format", choices=FORMATS, default="diffusers")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="a new folder; without, exports/ in the run's")
    given = parser.parse_args(arguments)
    print(export(given.run, given.checkpoint, given.format, given.output))
    return 0


def export(run: Path, checkpoint: str | None = None, form: str = "diffusers", output: Path | None = None) -> Path:
    """Write the weights of a run and what goes with them; the folder.

    Args:
        run: folder of `prdp train`.
        checkpoint: '10', 'epoch_00010', 'newest' or 'best'; None for what the run ended with, or else the newest.
        form: one of FORMATS.
        output: a new folder; None for one in the run's.

    Raises:
        StartError: no such run or checkpoint.
        ConfigError: a format that the weights cannot be written in, or a folder that is not empty.
    """
    from prdp.support.storage import atomic_directory

    if is_gated(run):
        raise StartError(
            f"{run}: is a mixture of experts with gates, which no other program computes; prdp gate with "
            "gate.frozen_average=true writes one LoRA of them beside the gates"
        )
    if not is_run(run):
        raise StartError(f"{run}: is no folder of a run (config.yaml with weights, checkpoints or metrics.jsonl)")
    trained = read_trained_run(run)
    _check_format(run, trained, form)
    for left in reversed(range(_ATTEMPTS)):
        model = chosen(trained, checkpoint)
        epoch = trained.epoch if model.epoch is None else model.epoch
        folder = output or run / "exports" / f"{form}_epoch_{epoch or 0:05}"
        check_empty(folder, "--output")
        try:
            with atomic_directory(folder) as place:
                usage = _write_weights(model, trained, form, place)
                _write_papers(trained, place, epoch or 0, form, usage)
            break
        except (CheckpointError, OSError):
            # A run that goes on drops its oldest checkpoints meanwhile.
            gone = model.kind == "checkpoint" and model.path is not None and not model.path.exists()
            if not (left and gone and checkpoint in (None, "newest", "best")):
                raise
    return folder


def _check_format(run: Path, trained: TrainedRun, form: str) -> None:
    if trained.config.learner.mode == "full" and form in ("kohya", "peft"):
        raise ConfigError(f"--format {form}: {run} trained full weights, which are no LoRA; take diffusers")
    if form == "single_file" and trained.config.model.family not in _FAMILIES:
        raise ConfigError(
            f"--format single_file: {run} is of model.family={trained.config.model.family}; of {', '.join(_FAMILIES)} "
            "whole models are written as one file; take merged"
        )
    if trained.config.model.adapters and form == "peft":
        raise ConfigError(
            f"--format peft: {run} has model.adapters beside what it trained; take diffusers, kohya or merged"
        )


def chosen(run: TrainedRun, checkpoint: str | None) -> EvaluatedModel:
    """The model that a run ended with, or that one of its checkpoints holds.

    Raises:
        StartError: there is none; names those that are there.
    """
    if checkpoint is None:
        return named_models([str(run.folder)], None)[0]
    there = sorted(one.name for one in (run.folder / CHECKPOINTS).glob("epoch_*"))
    best = best_checkpoint(run.folder, run.config.checkpoint.keep_best or SCORE) if checkpoint == "best" else None
    if checkpoint == "newest" and there:
        name = there[-1]
    elif best is not None:
        name = best.name
    elif checkpoint.isdigit():
        name = f"epoch_{int(checkpoint):05}"
    else:
        name = checkpoint
    if name not in there:
        listed = ", ".join(there) or "none"
        raise StartError(f"--checkpoint {checkpoint}: {run.folder} has {listed}{did_you_mean(name, there)}")
    return named_models([str(run.folder / CHECKPOINTS / name)], None)[0]


def _write_weights(model: EvaluatedModel, run: TrainedRun, form: str, place: Path) -> str:
    """Write the weights; the text that tells how to use them."""
    from prdp.evaluation.loading import loaded_policy
    from prdp.experts.lora_files import read_expert
    from prdp.experts.writing import write_lora

    mode, config = run.config.learner.mode, run.config
    merged = form in ("merged", "single_file") and mode == "lora"
    # Adapters of a network that was quantised are written beside, or added to, the one in the folder.
    model = replace(model, model=replace(model.model, quantization=None))
    policy: Any = loaded_policy(model, "float32" if merged or form == "single_file" else config.model.dtype)
    usage: str = policy.usage(config.model, config.sampler, "full" if merged else mode, place, _prompt(run))
    if form == "single_file":
        try:
            policy.save_single_file(place / SINGLE_FILE, config.model.dtype)
        except ValueError as error:
            raise ConfigError(f"--format single_file: {run.folder}: {error}") from error
        usage = _from_one_file(usage, config.model)
    elif merged:
        policy.save_merged(place, config.model.dtype)
    elif model.kind == "checkpoint" and form in ("diffusers", "merged"):
        policy.save(place)
    elif mode == "full":
        assert model.model.path is not None
        shutil.copytree(model.model.path, place, dirs_exist_ok=True)
    elif form == "diffusers":
        assert model.path is not None
        shutil.copy(model.path, place)
    else:
        source = model.path
        if model.kind == "checkpoint":
            source = place / "unconverted"
            source.mkdir()
            policy.save(source)
        found = read_expert("RUN", str(source)).layers
        # The factors of files have a scale of 1, whatever the run's alpha.
        layers = {name: replace(one, up=one.up * one.scale, scale=1.0) for name, one in found.items()}
        if form == "peft":
            encoders = [name for name in policy.ADAPTED_ENCODERS if any(one.startswith(f"{name}.") for one in layers)]
            lines = [_PEFT.format(network=policy.NETWORK), *(_PEFT_TEXT.format(encoder=name) for name in encoders)]
            usage = usage.replace("pipeline.load_lora_weights(weights)", "\n".join(lines))
        family = config.model.family
        write_lora(place, layers, form, {"run": run.folder.name, "epoch": model.epoch}, family)
        usage = _usage_of_kohya(usage, layers, family) if form == "kohya" else usage
        shutil.rmtree(place / "unconverted", ignore_errors=True)
    return usage


def _usage_of_kohya(usage: str, layers: Collection[str], family: str) -> str:
    """The program that loads the file, or what is said where diffusers does not read it.

    Args:
        layers: names with their components.
    """
    if family == STABLE_DIFFUSION_3.family:
        return _KOHYA_SD3
    attention = [name for name in layers if is_of_text_encoder(name) and ".self_attn." in name]
    return _KOHYA_TEXT if attention and not any(name.endswith(".out_proj") for name in attention) else usage


def _from_one_file(usage: str, model: ModelConfig) -> str:
    """The program of a whole pipeline, with the one file in its place."""
    folder, file = _configurations(model), f'weights + "/{SINGLE_FILE}"'
    options = f"{file}, config={folder!r}"
    if model.family == Z_IMAGE.family:
        # diffusers takes the transformer alone from a file, and leaves the rest to be given.
        usage = re.sub(
            r"^(pipeline = )",
            "from diffusers import AutoencoderKL\n"
            f"from transformers import {Z_IMAGE.components['text_encoder']}\n\n\\1",
            usage,
            count=1,
            flags=re.MULTILINE,
        )
        dtype = "" if model.dtype == "float32" else f", dtype=torch.{model.dtype}"
        options += (
            f", text_encoder={Z_IMAGE.components['text_encoder']}.from_pretrained({folder!r}, "
            f'subfolder="text_encoder"{dtype}), '
            f'vae=AutoencoderKL.from_single_file({file}, config={folder!r}, subfolder="vae"{dtype})'
        )
    usage = re.sub(r"\.from_pretrained\(weights", lambda _: f".from_single_file({options}", usage, count=1)
    if model.family in _WITH_T5:
        usage = re.sub(r"^(pipeline = .*)$", rf"\1\n{_EVALUATING}", usage, count=1, flags=re.MULTILINE)
    return usage


def _configurations(model: ModelConfig) -> str:
    """Where a program finds what one file lacks: configurations, scheduler and tokenizers."""
    from prdp.diffusion.model_folder import found_from_anywhere

    return found_from_anywhere(model.config or model.path)


def _prompt(run: TrainedRun) -> str:
    """The first held-out prompt that the run was judged on."""
    from prdp.tracking.evaluations import list_evaluations, load_evaluation

    epochs = list_evaluations(run.folder)
    return load_evaluation(run.folder, epochs[0]).prompts[0] if epochs else "a photograph of a lighthouse at night"


def _write_papers(run: TrainedRun, place: Path, epoch: int, form: str, usage: str) -> None:
    from prdp.reports.model_card import Origin, write_card
    from prdp.reports.report_data import read_run

    program = re.search(r"^```python\n(.*?)^```$", usage, re.MULTILINE | re.DOTALL)
    if program is not None:
        here = "weights = str(Path(__file__).resolve().parent)"
        lines = re.sub(r"^weights = .*$", here, program[1], count=1, flags=re.MULTILINE)
        (place / PROGRAM).write_text(f"from pathlib import Path\n\n{lines}", encoding="utf-8")
    remarks = [line for line in usage.splitlines() if line.startswith("* ")]
    name = PROGRAM if program is not None else ""
    origin = Origin(run.config.model.path, epoch, form, __version__, _rewards(run))
    write_card(read_run(run.folder), place, origin, name, remarks)


def _rewards(run: TrainedRun) -> list[str]:
    """Names and versions of the reward and its terms, as the newest checkpoint tells them."""
    from prdp.checkpoints.checkpoint import read_state

    folders = sorted((run.folder / CHECKPOINTS).glob("epoch_*"))
    identity = read_state(folders[-1])["state"].get("reward") if folders else None
    return _versions(identity) if identity else [run.reward_name]


def _versions(identity: Mapping[str, Any]) -> list[str]:
    own = f"{identity.get('name')}, version {identity.get('version')}"
    return [own, *(line for part in (identity.get("terms") or {}).values() for line in _versions(part))]
