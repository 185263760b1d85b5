"""Objectives: evidence in, a scalar loss and its coefficients out. They know no model and no device."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

from prdp.evidence import (
    Denoising,
    DenoisingLikelihood,
    Evidence,
    FiniteDifference,
    GuidedReference,
    ImplicitPolicies,
    OldPolicy,
)
from prdp.objectives._idle_knobs import idle_knobs
from prdp.objectives._knobs import mistakes
from prdp.objectives._method import Method
from prdp.objectives._objective import Coefficients, Objective
from prdp.objectives._soundness import BATCH_ARRAYS, method_problem
from prdp.objectives.awm import awm
from prdp.objectives.best_of_n import best_of_n
from prdp.objectives.crd import crd
from prdp.objectives.ddpo import ddpo
from prdp.objectives.denoising import denoising
from prdp.objectives.dgpo import dgpo
from prdp.objectives.diffusion_dpo import diffusion_dpo
from prdp.objectives.fdfo import fdfo
from prdp.objectives.flow_dppo import flow_dppo
from prdp.objectives.grpo import grpo
from prdp.objectives.grpo_guard import grpo_guard
from prdp.objectives.nft import nft
from prdp.objectives.prdp import prdp
from prdp.objectives.rebel import rebel
from prdp.objectives.reinforce import reinforce
from prdp.objectives.reward_weighted_regression import reward_weighted_regression
from prdp.objectives.tempflow_grpo import tempflow_grpo
from prdp.support.errors import ConfigError
from prdp.support.suggest import did_you_mean
from prdp.support.targets import TARGET, locate

__all__ = [
    "BATCH_ARRAYS",
    "OBJECTIVES",
    "Coefficients",
    "Method",
    "Objective",
    "build_objective",
    "evidence_of",
    "method_of",
    "objective_label",
    "objective_mistakes",
    "objectives_without_noise",
]

Settings = TypeVar("Settings", Evidence, OldPolicy)

TERMS_APART = {"reward_terms": "normalise_terms", "reward_weights": "normalise_terms"}
"""`only_with` of methods that can standardise the terms of a weighted sum each by itself."""
_KL_AND_TERMS = {"kl_ref": "beta", **TERMS_APART}
_BUFFER = {"min_count": "buffer_size"}
_DENOISING = (Denoising(shared_draws=True),)

OBJECTIVES: dict[str, Method] = {
    "prdp": Method(
        prdp,
        also=_DENOISING,
        linear=("kl_ref",),
        old_policy=OldPolicy(),
        only_with={"log_ratio_old": "clip_range", "kl_ref": "kl", **TERMS_APART},
        by_group=True,
    ),
    "ddpo": Method(ddpo, also=_DENOISING, only_with=TERMS_APART, by_group=True, idle_without=_BUFFER),
    "reinforce": Method(
        reinforce, also=_DENOISING, linear=("log_importance",), only_with=TERMS_APART, idle_without=_BUFFER
    ),
    "grpo": Method(grpo, also=_DENOISING, linear=("kl_ref",), only_with=_KL_AND_TERMS, by_group=True),
    "tempflow_grpo": Method(tempflow_grpo, linear=("kl_ref",), only_with=_KL_AND_TERMS, by_group=True),
    "grpo_guard": Method(grpo_guard, linear=("kl_ref",), only_with=_KL_AND_TERMS, by_group=True),
    "flow_dppo": Method(flow_dppo, linear=("kl_ref",), watched=("kl_old",), only_with=_KL_AND_TERMS, by_group=True),
    "rebel": Method(rebel, also=_DENOISING, by_group=True),
    "reward_weighted_regression": Method(reward_weighted_regression, Denoising(), linear=("denoising",)),
    "best_of_n": Method(best_of_n, Denoising(), linear=("denoising",)),
    "denoising": Method(denoising, Denoising(), linear=("denoising",)),
    "diffusion_dpo": Method(diffusion_dpo, Denoising(shared_draws=True), by_group=True),
    "crd": Method(
        crd,
        GuidedReference(shared_draws=True, times="sampler", adaptive_weight=True),
        linear=("kl_ref",),
        old_policy=OldPolicy(old_decay=0.25, old_decay_rise=0.005),
        only_with={"kl_ref": "kl", **TERMS_APART},
        idle_without={"kl_least": "kl", "kl_guidance": "kl"},
        by_group=True,
    ),
    "nft": Method(
        nft,
        ImplicitPolicies(),
        linear=("positive", "negative", "kl_ref"),
        old_policy=OldPolicy(old_decay_rise=0.001, old_decay_limit=0.5, old_samples=True),
        only_with={"kl_ref": "kl", **TERMS_APART},
    ),
    "fdfo": Method(fdfo, FiniteDifference(), linear=("kl_ref",), only_with={"kl_ref": "kl"}, by_group=True),
    "awm": Method(
        awm,
        DenoisingLikelihood(draws=6, times="sampler_stratified", noisiest=0.9),
        linear=("kl_ref", "kl_old_policy"),
        old_policy=OldPolicy(old_decay_rise=0.001, old_decay_limit=0.3),
        only_with={"kl_old_policy": "beta_old", **_KL_AND_TERMS},
        idle_unless={"power": ("weighting", "ghuber")},
        by_group=True,
    ),
    "dgpo": Method(
        dgpo,
        GuidedReference(draws=4, shared_draws=True, times="sampler", noisiest=0.7),
        linear=("kl_ref",),
        old_policy=OldPolicy(old_decay_rise=0.001, old_decay_limit=0.3, old_samples=True),
        only_with={"denoising_ref": "frozen_reference", "kl_ref": "kl", **TERMS_APART},
        idle_without={"kl_guidance": "kl"},
        by_group=True,
    ),
}


def method_of(config: Mapping[str, Any]) -> Method:
    """The method that a configuration names: of OBJECTIVES by `name`, or anybody's by `_target_`.

    A target is the dotted path of a loss like those here, on evidence of trajectories, or of a `Method` around one.

    Raises:
        ConfigError: an unknown name; a target that cannot be imported, is no loss, or does not fit together.
    """
    if TARGET not in config:
        name = config.get("name")
        if not isinstance(name, str) or name not in OBJECTIVES:
            raise ConfigError(
                f"objective.name={name}: must be one of {', '.join(OBJECTIVES)}{did_you_mean(str(name), OBJECTIVES)}"
            )
        return OBJECTIVES[name]
    key, path = f"objective.{TARGET}", config[TARGET]
    if config.get("name") is not None:
        raise ConfigError(f"objective.name={config['name']}: must be null beside {key}={path}")
    if not isinstance(path, str):
        raise ConfigError(f"{key}={path}: must be a dotted path, package.module.name")
    found = locate(key, path)
    if not isinstance(found, Method):
        if not inspect.isfunction(found):
            raise ConfigError(f"{key}={path}: is a {type(found).__name__}, must be a loss function or a Method")
        found = Method(found)
    if problem := method_problem(found):
        raise ConfigError(f"{key}={path}: {problem}")
    return found


def objectives_without_noise() -> list[str]:
    """Options of the group `objective` whose evidence, as they are, is not of the sampler's steps."""
    return ["prdp_denoising", *(name for name, method in OBJECTIVES.items() if not method.evidence.keeps_steps)]


def objective_label(config: Mapping[str, Any]) -> str:
    """'objective.name=prdp' or 'objective._target_=my_losses.mine', for messages."""
    key = TARGET if TARGET in config else "name"
    return f"objective.{key}={config.get(key)}"


def objective_mistakes(config: Mapping[str, Any]) -> list[str]:
    """A line for everything that is wrong with a configuration: the method, and the knobs of that method."""
    try:
        knobs = method_of(config).knobs
    except ConfigError as error:
        return [str(error)]
    except TypeError as error:
        return [f"{objective_label(config)}: {error}"]
    given = {key: value for key, value in config.items() if key not in ("name", TARGET)}
    lines = mistakes(objective_label(config), knobs, given)
    lines = lines or idle_knobs(method_of(config), given)
    if not lines and given.get("normalise_terms") and given.get("std") == "none":
        lines.append("objective.normalise_terms=true: has no effect with objective.std=none, which normalises nothing")
    if not lines and "buffer_size" in knobs:
        size, least = (given.get(key, knobs[key].default) for key in ("buffer_size", "min_count"))
        if 0 < size < least:
            lines.append(
                f"objective.min_count={least}: must be at most objective.buffer_size={size}, or no prompt would ever "
                "have enough rewards; to standardise by the batch alone set objective.buffer_size=0"
            )
    return lines


def build_objective(config: Mapping[str, Any]) -> Objective:
    """The objective that a configuration names, with its knobs; those not given have the defaults of its signature.

    Raises:
        ValueError: all that is wrong, a line each.
    """
    wrong = objective_mistakes(config)
    if wrong:
        raise ValueError("\n".join(wrong))
    method = method_of(config)
    knobs = {key: config.get(key, knob.default) for key, knob in method.loss_knobs.items()}
    evidence = evidence_of(config, method)
    name = str(config.get("name") or config[TARGET])
    old = None if method.old_policy is None else _with_knobs(method.old_policy, config)
    built = Objective(name, method, knobs, evidence, old)
    if old is not None and "old" not in built.others and not (old.old_samples or old.old_is_reference):
        built = dataclasses.replace(built, old_policy=None)
    return built


def evidence_of(config: Mapping[str, Any], method: Method | None = None) -> Evidence:
    """The evidence that a configuration asks for, with its knobs set."""
    method = method or method_of(config)
    return _with_knobs(method.kinds[config.get("evidence", method.evidence.kind)], config)


def _with_knobs(settings: Settings, config: Mapping[str, Any]) -> Settings:
    names = (one.name for one in dataclasses.fields(settings))
    return dataclasses.replace(settings, **{name: config[name] for name in names if name in config})
