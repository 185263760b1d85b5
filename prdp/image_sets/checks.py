"""Whether sets of images fit the run that is to learn from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prdp.config import ModelConfig, TrainConfig
from prdp.diffusion import family_of
from prdp.diffusion.guidance import guided
from prdp.diffusion.latent_space import is_vae_of, vae_digest
from prdp.image_sets.best_images import best_scores
from prdp.image_sets.reading import ImageSet
from prdp.image_sets.stored_scores import names_of, names_within
from prdp.support.errors import StartError
from prdp.support.targets import TARGET


def check_sets(config: TrainConfig, sets: Sequence[ImageSet]) -> None:
    """Refuse sets that are not whole, have too few images of a prompt, or latents of another space.

    Raises:
        StartError: all that is wrong, a line each: the set, the file or key, what it is and what was expected.
    """
    problems = []
    for one in sets:
        problems += missing_problems(one)
        size = one.manifest.images_per_prompt
        if config.images_per_prompt > size:
            problems.append(
                f"images_per_prompt={config.images_per_prompt}: must be at most {size}, of which {one.folder} has of "
                "each prompt"
            )
        if config.rollouts.encode:
            problems += _encoding_problems(config)
        else:
            advice = "rollouts.encode=true makes latents of the images by the model's VAE"
            problems += [f"{problem}; {advice}" for problem in latent_problems(config.model, one)]
    sizes = {tuple(one.manifest.picture_size): one.folder for one in sets}
    if len(sizes) > 1:
        told = ", ".join(f"{height} x {width} in {folder}" for (height, width), folder in sizes.items())
        problems.append(f"rollouts.path: the sets have pictures of several sizes, and a run takes one: {told}")
    if problems:
        raise StartError("\n".join(dict.fromkeys(problems)))


def set_notes(config: TrainConfig, sets: Sequence[ImageSet]) -> list[str]:
    """What ought to be known of learning from these sets, a line each."""
    notes, scale = [], config.sampler.guidance_scale
    for one in sets:
        notes += guidance_notes(one, scale, f"sampler.guidance_scale={scale:g}")
        names = list(dict.fromkeys(names_within(one.manifest, config.reward)))
        versions = ", ".join(f"{name} version {one.manifest.rewards[name]['identity']['version']}" for name in names)
        notes.append(
            f"rewards: {one.folder} keeps scores by {versions}, which are used where the reward is of that version"
            if names
            else f"rewards: {one.folder} keeps no scores by {config.reward.get(TARGET)} with these arguments, so that "
            "its images are scored in every epoch; prdp generate with rewards=[...] adds scores"
        )
        notes += _threshold_notes(config, one)
    return notes


def _threshold_notes(config: TrainConfig, one: ImageSet) -> list[str]:
    """How many prompts of a set are left out by `objective.least`, as far as its scores tell."""
    least = config.objective.get("least")
    aspect = _aspect_of(config.reward, one)
    if config.objective.get("name") != "best_of_n" or least is None or aspect is None:
        return []
    try:
        best = best_scores(one, aspect, config.images_per_prompt, config.rollouts.skill)
    except StartError:
        return []  # A set that is not whole is told by what reads its scores.
    if not len(best):
        return []
    below = int((best < least).sum())
    where = f"objective.least={least:g}: by {aspect} of {one.folder}"
    if below < len(best):
        return [f"{where} leaves out {below:,} of {len(best):,} prompts"] if below else []
    return [
        f"warning: {where} leaves out all {below:,} prompts, of which nothing is learned: the best image of all has "
        f"{best.max():.4g}"
    ]


def _aspect_of(section: Mapping[str, Any], one: ImageSet) -> str | None:
    """The name of a set's scores by a reward, or of sub-scores by one that `reward=sub_score` takes one of."""
    if names := names_of(one.manifest, section):
        return names[0]
    inner = section.get("reward")
    if str(section.get(TARGET)).endswith(".SubScore") and isinstance(inner, Mapping):
        return next((f"{name}.{section.get('name')}" for name in names_of(one.manifest, inner)), None)
    return None


def guidance_notes(one: ImageSet, scale: float, cause: str) -> list[str]:
    """A warning where a set was drawn with another guidance than it is learned from with; empty elsewhere.

    Args:
        scale: of the guidance that it is learned with.
        cause: what says so.
    """
    drawn_with = one.manifest.guidance_scale
    if drawn_with is None or drawn_with == scale or not (guided(drawn_with) or guided(scale)):
        return []
    if guided(scale):
        return [
            f"warning: guidance: {one.folder} was drawn with guidance {drawn_with:g} and is learned from with another "
            f"({cause}): the model learns to draw with {scale:g} what it drew with {drawn_with:g}, so that a gain or a "
            "loss may be that of guidance"
        ]
    return [
        f"warning: guidance: {one.folder} was drawn with guidance {drawn_with:g} and is learned from without "
        f"({cause}): the model learns to draw guided images unguided, so that a gain may be that of guidance, and "
        "sampling with guidance afterwards guides twice"
    ]


def missing_problems(one: ImageSet) -> list[str]:
    """Files of a set that are not there."""
    missing = one.missing()
    if not missing:
        return []
    return [
        f"rollouts.path={one.folder}: {len(missing):,} files are missing, the first is {missing[0]}; the prdp generate "
        "that made the set makes them again"
    ]


def latent_problems(model: ModelConfig, one: ImageSet) -> list[str]:
    """Latents of another shape or VAE than the model's."""
    latents, where = one.manifest.latents, f"rollouts.path={one.folder}"
    shape = tuple(family_of(model).latent_shape_of(model))
    if tuple(latents["shape"]) != shape:
        return [
            f"{where}: its latents have the shape {_shown(latents['shape'])}, and those of model.path="
            f"{model.path} {_shown(shape)}"
        ]
    vae = vae_digest(model)
    if not is_vae_of(latents["vae"], model):
        return [
            f"{where}: its latents are of another VAE (digest {latents['vae']}) than that of model.path="
            f"{model.path} ({vae})"
        ]
    return []


def _encoding_problems(config: TrainConfig) -> list[str]:
    if hasattr(family_of(config.model), "encode_images"):
        return []
    return [f"rollouts.encode=true: model.family={config.model.family} has no encode_images: must be false"]


def _shown(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
