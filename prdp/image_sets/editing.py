"""A model draws from given pictures, or by a ControlNet that reads them, what their captions ask for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from prdp.cluster.base import SamplerLike
from prdp.collaboration.cascade_files import read_cascade
from prdp.config import SamplerConfig
from prdp.diffusion import family_of
from prdp.diffusion.control import check_control
from prdp.diffusion.model_folder import fetch_model, read_component
from prdp.diffusion.pipeline_formats import STABLE_DIFFUSION
from prdp.diffusion.refinement import rollback
from prdp.evaluation.cascades import Given, build_cascade_sampler, editing_parts, parts_of
from prdp.evaluation.loading import build_plain_sampler
from prdp.evaluation.models import EvaluatedModel
from prdp.image_sets.pictures import PictureFolder
from prdp.support.errors import ConfigError, start_up_checks
from prdp.types import PromptBatch, Rollout, UInt8, Weights

Edit = Callable[[PromptBatch, int, int, UInt8], Rollout]
"""(prompts, images per prompt, seed, pictures uint8 [prompts, H, W, 3])."""


class EditingSampler:
    """Gives what a model makes of pictures.

    Args:
        pictures: a prompt is found by its place in them.
        size: (H, W) that they are brought to.
        edit: what the model makes of some.
        load: binds weights.
    """

    def __init__(
        self,
        pictures: PictureFolder,
        size: tuple[int, int],
        edit: Edit,
        load: Callable[[Weights], tuple[int, str]],
    ) -> None:
        self._pictures, self._size, self._edit, self._load = pictures, size, edit, load

    def load_weights(self, weights: Weights) -> tuple[int, str]:
        """See `Sampler.load_weights`."""
        return self._load(weights)

    def sample(self, prompts: PromptBatch, images_per_prompt: int, seed: int, trajectory: bool = True) -> Rollout:
        """`images_per_prompt` images of each prompt, from its picture."""
        pictures = np.stack([self._pictures.picture(index, self._size) for index in prompts.indices])
        return self._edit(prompts, images_per_prompt, seed, pictures)


def build_editing_sampler(
    path: str,
    given: Given,
    model: EvaluatedModel,
    sampler: SamplerConfig,
    dtype: str,
    device: str,
    autocast: str | None,
) -> SamplerLike:
    """Picklable as a `functools.partial`, so that an actor can call it.

    Args:
        path: of the pictures.
        given: what becomes of them.
        model, sampler, dtype, device, autocast: see `prdp.evaluation.loading.build_evaluated_sampler`.
    """
    folder, size = PictureFolder(path), family_of(model.model).picture_size_of(model.model)
    if model.kind == "cascade":
        assert model.path is not None
        cascade = build_cascade_sampler(model.path, dtype, device, autocast, sampler, given)
        return EditingSampler(folder, size, cascade.edit, cascade.load_weights)
    if given.strength is None:
        assert given.control is not None
        plain = build_plain_sampler(model, sampler, dtype, device, autocast, kl=False)
        plain.put_control(given.control, given.scale)
        return EditingSampler(folder, size, plain.controlled, plain.load_weights)
    whole, first = begun_within(sampler, given.strength)
    built = build_plain_sampler(model, whole, dtype, device, autocast, kl=False)
    return EditingSampler(folder, size, partial(built.edit, first=first), built.load_weights)


def begun_within(sampler: SamplerConfig, strength: float) -> tuple[SamplerConfig, int]:
    """The whole chain of which `sampler.steps` steps are taken, and the step to begin at."""
    from dataclasses import replace

    total, first = rollback(sampler.steps, strength)
    return replace(sampler, steps=total), first


def check_editing(model: EvaluatedModel, sampler: SamplerConfig, strength: float) -> str:
    """Where the model is to begin, for people.

    Raises:
        ConfigError: a model that can't begin with pictures, or a chain that is too long for its sampler.
    """
    if not hasattr(family_of(model.model), "encode_images"):
        raise ConfigError(f"strength={strength:g}: model.family={model.model.family} has no encode_images")
    if model.kind != "cascade":
        return _told(model.name, model, *begun_within(sampler, strength))
    assert model.path is not None
    cascade = read_cascade(model.path)
    samplers, edited = editing_parts(cascade, strength)
    assert edited is not None
    parts = [("the student", samplers[0], edited[0])]
    if cascade.strategy.name in ("regenerate", "skip"):
        parts.append(("the teacher", samplers[1], edited[1]))
    told = "; ".join(_told(name, model, own, first) for name, own, first in parts)
    return f"{told}; the threshold was calibrated on images that were drawn from noise"


def check_controlled(model: EvaluatedModel, path: str) -> str:
    """What is drawn by, for people.

    Raises:
        ConfigError: a model without ControlNets.
        StartError: a folder that holds no ControlNet of the model's UNet.
    """
    models = [model]
    if model.kind == "cascade":
        assert model.path is not None
        models = list(parts_of(read_cascade(model.path)))
    for one in models:
        if one.model.family != STABLE_DIFFUSION.family:
            raise ConfigError(
                f"control={path}: {one.name} is of model.family={one.model.family}; ControlNets are those of "
                f"{STABLE_DIFFUSION.family}"
            )
        folder = fetch_model(one.model.config or one.model.path, one.model.variant, one.model.revision)
        check_control(path, read_component(folder, "unet"))
    return f"{' and '.join(one.name for one in models)} draw by the ControlNet {path}, which reads the pictures"


def _told(name: str, model: EvaluatedModel, sampler: SamplerConfig, first: int) -> str:
    process = family_of(model.model).process_of(model.model)
    with start_up_checks("strength"):
        time = process.transitions(sampler).times[first : first + 1]
    variance = float(process.noise_level(time)[0] ** 2)
    return (
        f"{name} draws from t = {time[0]:g} on, step {first} of {sampler.steps}: strength "
        f"{1 - first / sampler.steps:.2f}, variance of the noise {variance:.2f}"
    )
