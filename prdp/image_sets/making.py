"""Making a set of images: what is missing is drawn and scored, then the manifest is written."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from prdp.cluster.base import SamplerFactory
from prdp.collaboration.cascade_files import read_cascade
from prdp.diffusion import family_of
from prdp.diffusion.latent_space import vae_digest
from prdp.evaluation.cascades import passes_of
from prdp.evaluation.models import EvaluatedModel
from prdp.evaluation.samplers import network_passes, sampler_of
from prdp.evaluation.store import FOLDER, RECORD, Chunk
from prdp.evaluation.work import Say, Work, sample_missing, score_missing
from prdp.image_sets.manifest import FILE, Entry, Manifest, read_manifest, write
from prdp.image_sets.origins import Origin
from prdp.image_sets.settings import GenerateConfig
from prdp.support.errors import ConfigError
from prdp.types import PromptBatch

_UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def work_of(config: GenerateConfig, origin: Origin, prompts: Mapping[str, PromptBatch]) -> Work[GenerateConfig]:
    """Lay out the work, and compare it with what its folder holds.

    Raises:
        ConfigError: the folder holds images that were made otherwise, of other prompts, or cut into other chunks.
    """

    def key_of(_: EvaluatedModel) -> dict[str, Any]:
        return {**origin.key(), "latents": config.latents, **({"chains": True} if config.chains else {})}

    work = Work.of(config, [origin.model], prompts, key_of, timed=False)
    _check_same(work)
    return work


def make(work: Work[GenerateConfig], origin: Origin, say: Say) -> Manifest:
    """Draw and score what is missing; the manifest as it was written."""
    config, folder = work.config, Path(work.config.output_dir)

    def factories(_: EvaluatedModel) -> SamplerFactory:
        return origin.sampler_factory()

    sample_missing(work, say, factories)
    identities = {name: score_missing(work, name, section, say) for name, section in config.rewards.items()}
    earlier = dict(read_manifest(folder).rewards) if (folder / FILE).is_file() else {}
    rewards = {
        name: {"identity": identities[name], "section": dict(section)} for name, section in config.rewards.items()
    }
    return write(folder, _manifest(work, origin, {**earlier, **rewards}), _entries(work))


def size_text(config: GenerateConfig, model: EvaluatedModel, prompts: Mapping[str, PromptBatch]) -> str:
    """How many images, and how much room they take on the disk at most, in lines for people."""
    family, count = family_of(model.model), sum(map(len, prompts.values()))
    images = count * config.images_per_prompt
    pictures = images * 3 * math.prod(family.picture_size_of(model.model))
    kept = 2 + sampler_of(config, model).steps if config.chains else 1
    latents = kept * images * math.prod(family.latent_shape_of(model.model)) * np.dtype(config.latents).itemsize
    folder = Path(config.output_dir)
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(place).free
    nobody_draws = config.pictures is not None and not config.models
    passes = "" if nobody_draws else f", {_passes(config, model)} passes each"
    told = (
        f"{images:,} images = {count:,} prompts x {config.images_per_prompt:,} of {model.name}{passes}; on the disk up "
        f"to {_shown(pictures)} of pictures, before PNG packs them, and {_shown(latents)} of latents "
        f"({config.latents}); {_shown(free)} are free"
    )
    return f"{told}\nwarning: disk: there may not be room enough" if pictures + latents > free else told


def _passes(config: GenerateConfig, model: EvaluatedModel) -> str:
    """Of the network for an image."""
    if model.kind != "cascade" or model.path is None:
        return f"{network_passes(sampler_of(config, model))}"
    least, most = passes_of(read_cascade(model.path))
    return f"{least} or {most}"


def _check_same(work: Work[GenerateConfig]) -> None:
    """Refuse a folder whose images would have to be made again: a set is read as one."""
    folder = Path(work.config.output_dir)
    expected = {chunk.folder for _, chunk in work.all_chunks()}
    others = sorted({file.parent for file in (folder / FOLDER).rglob(RECORD)} - expected)
    if others:
        raise ConfigError(
            f"output_dir={folder}: holds images that are not of this set, first in {others[0].relative_to(folder)}: of "
            "another model, other prompts or seed, or cut otherwise (sampler.prompts_per_chunk); take a folder of its "
            "own, or the settings of the config.yaml there"
        )
    changed = sorted({part for _, chunk in work.all_chunks() for part in chunk.differences()} - {"missing"})
    if changed:
        raise ConfigError(
            f"output_dir={folder}: holds images that were made otherwise; these differ: {', '.join(changed)}; take a "
            "folder of its own, or the settings of the config.yaml there"
        )


def _manifest(work: Work[GenerateConfig], origin: Origin, rewards: Mapping[str, Any]) -> Manifest:
    config, model = work.config, origin.model.model
    family = family_of(model)
    return Manifest(
        model=origin.identity(),
        sampler=origin.sampler(),
        precision=origin.precision(),
        seed=config.seed,
        images_per_prompt=config.images_per_prompt,
        picture_size=family.picture_size_of(model),
        latents={
            "shape": list(family.latent_shape_of(model)),
            "dtype": config.latents,
            "vae": vae_digest(model),
            **({"chains": True} if config.chains else {}),
        },
        rewards=rewards,
        prompts=0,
        prompts_digest="",
    )


def _entries(work: Work[GenerateConfig]) -> list[Entry]:
    return [entry for (_, prompt_set, _), chunk in work.all_chunks() for entry in _entries_of(work, prompt_set, chunk)]


def _entries_of(work: Work[GenerateConfig], prompt_set: str, chunk: Chunk) -> list[Entry]:
    size, names = chunk.images_per_prompt, chunk.names()
    images, latents = chunk.digests()
    place = chunk.folder.relative_to(work.config.output_dir).as_posix()
    return [
        Entry(
            prompt=text,
            metadata=metadata,
            prompt_set=prompt_set,
            chunk=place,
            row=row,
            files=tuple(names[row * size : (row + 1) * size]),
            images=tuple(images[row * size : (row + 1) * size]),
            latents=tuple(latents[row * size : (row + 1) * size]),
        )
        for row, (text, metadata) in enumerate(zip(chunk.prompts.texts, chunk.prompts.metadata, strict=True))
    ]


def _shown(size: int) -> str:
    unit, name = next(((unit, name) for unit, name in _UNITS if size >= unit), _UNITS[-1])
    return f"{size / unit:,.1f} {name}"
