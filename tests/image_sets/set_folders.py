"""Sets of images of small random pipelines, made in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prdp.commands.generate import GENERATION, check_start, generate
from prdp.configuration.compose import Composer
from prdp.configuration.typed import conf_folder
from prdp.evaluation.command_line import CommandLine, read_command_line
from prdp.image_sets.settings import GenerateConfig

SAMPLER = ("sampler.steps=2", "sampler.guidance_scale=2", "sampler.prompts_per_chunk=1", "sampler.microbatch=2")
SMALL = ("prompts=[shapes.train]", "prompts.shapes_train.size=9", "prompts_per_set=4", "images_per_prompt=2", *SAMPLER)
NOT_OF_THE_SET = ("config.yaml", "progress.log")
"""What tells where and when a set was made."""


def made(folder: Path, pipeline: Path, *words: str, small: tuple[str, ...] = SMALL) -> Path:
    """What the command does, with a single composition."""
    config, line = composed(folder, pipeline, *words, small=small)
    generate(config, check_start(config, line.model_is_given, line.sizes), line.notes)
    return folder


def composed(
    folder: Path, pipeline: Path, *words: str, small: tuple[str, ...] = SMALL
) -> tuple[GenerateConfig, CommandLine]:
    """The configuration of a command line, and what was read of that."""
    given = [f"model.path={pipeline}", *small, *words, f"output_dir={folder}"]
    if not any(word.startswith(("models=", "pictures=")) for word in given):
        given.append("models=[base]")
    line = read_command_line(given, [conf_folder()], GENERATION)
    with Composer(line.words, root=line.root, additions=line.additions) as composer:
        [job] = composer.jobs()
    return job.config, line


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a set and what is in it."""
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and file.name not in NOT_OF_THE_SET
    }


def entries(folder: Path) -> list[dict[str, Any]]:
    import json

    return [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
