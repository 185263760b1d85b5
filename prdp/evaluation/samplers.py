"""How each model draws: by the section that all share, by a sampler of its own, and what `samplers` changes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from prdp.config import SamplerConfig
from prdp.configuration.bounds import broken_rules
from prdp.configuration.sampler_bounds import log_prob_problems, noise_problems
from prdp.diffusion.effective_scheduler import distilled_warning
from prdp.diffusion.guidance import guided
from prdp.evaluation.models import EvaluatedModel
from prdp.evaluation.settings import Drawing
from prdp.support.errors import ConfigError
from prdp.support.plain_yaml import literal
from prdp.support.suggest import did_you_mean

_SHARED = ("microbatch", "prompts_per_chunk")
"""Of the work, and so the same for every model."""


def sampler_of(config: Drawing, model: EvaluatedModel) -> SamplerConfig:
    """How a model draws: models distilled to few steps by a sampler of their own, the others by the section.

    Raises:
        ConfigError: a key or a value of samplers.NAME that the section `sampler` does not take.
    """
    own = config.sampler if model.sampler is None else model.sampler
    changes = dict(config.samplers.get(model.name) or {})
    shared = {key: getattr(config.sampler, key) for key in _SHARED}
    return changed_sampler(dataclasses.replace(own, **shared), f"samplers.{model.name}", changes)


def sampler_problems(config: Drawing, models: Sequence[EvaluatedModel]) -> list[str]:
    """What is wrong with `samplers`, a line each."""
    names = [model.name for model in models]
    problems = [
        f"samplers.{name}: must be one of the models {', '.join(names)}{did_you_mean(name, names)}"
        for name in config.samplers
        if name not in names
    ]
    for model in models:
        if model.name not in config.samplers:
            continue
        if model.kind == "cascade":
            problems.append(f"samplers.{model.name}: a cascade draws as it was calibrated; calibrate another")
            continue
        try:
            found = sampler_of(config, model)
        except ConfigError as error:
            problems.append(str(error))
            continue
        told = broken_rules(found)[1] or noise_problems(found)
        told = told or (log_prob_problems(found, "kl=true") if config.kl else [])
        problems += [f"samplers.{model.name}: {one}" for one in told]
    return problems


def own_samplers(config: Drawing, models: Sequence[EvaluatedModel]) -> list[str]:
    """A sentence for each model that does not draw as the section says, and a warning where one should not."""
    warned = [
        distilled_warning(model.model, sampler_of(config, model)) for model in models if model.kind == "pipeline"
    ]
    return list(filter(None, dict.fromkeys(warned))) + [
        f"{model.name} draws as it was calibrated"
        if model.kind == "cascade"
        else f"{model.name} draws by {_told(sampler_of(config, model))} (samplers.{model.name}.steps=... changes it)"
        for model in models
        if model.sampler is not None or model.name in config.samplers
    ]


def network_passes(sampler: SamplerConfig) -> int:
    """Passes of the network for an image, where guidance takes two a step."""
    return sampler.steps * (1 + guided(sampler.guidance_scale))


def _told(sampler: SamplerConfig) -> str:
    steps = f"{sampler.steps} step{'' if sampler.steps == 1 else 's'}"
    return f"a sampler of its own: {sampler.kind}, {steps}, guidance {sampler.guidance_scale:g}"


def changed_sampler(sampler: SamplerConfig, key: str, changes: Mapping[str, Any]) -> SamplerConfig:
    """A sampler with some values changed.

    Args:
        key: where the changes stand.
        changes: of any keys but those of the work, see `_SHARED`.

    Raises:
        ConfigError: an unknown key, or a value of another type; by key.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    known = [field.name for field in dataclasses.fields(SamplerConfig) if field.name not in _SHARED]
    for name in changes:
        if name not in known:
            raise ConfigError(f"{key}.{name}: must be one of {', '.join(known)}{did_you_mean(str(name), known)}")
    try:
        made: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(sampler), literal(dict(changes))))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{key}: {str(error).splitlines()[0]}") from error
    found: SamplerConfig = made
    return found
