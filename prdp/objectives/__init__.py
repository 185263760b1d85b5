"""Objectives: evidence in, a scalar loss and its coefficients out. They know no model and no device."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_type_hints

import numpy as np
import numpy.typing as npt

from prdp.evidence import (
    Denoising,
    DenoisingLikelihood,
    Evidence,
    FiniteDifference,
    GuidedReference,
    ImplicitPolicies,
    OldPolicy,
    Trajectory,
)
from prdp.evidence.base import Of
from prdp.objectives._idle_knobs import idle_knobs
from prdp.objectives._knobs import Knob, fields_as_knobs, mistakes
from prdp.objectives._soundness import BATCH_ARRAYS, loss_result, method_problem
from prdp.objectives.awm import awm
from prdp.objectives.best_of_n import best_of_n
from prdp.objectives.crd import crd
from prdp.objectives.ddpo import ddpo
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

if TYPE_CHECKING:
    import torch

Arrays = Mapping[str, npt.ArrayLike]
Settings = TypeVar("Settings", Evidence, OldPolicy)


@dataclass(frozen=True)
class Method:
    """A loss and what it is computed from; the names of its positional parameters say which arrays it takes.

    Attributes:
        loss: function of arrays and knobs, to (scalar tensor, name -> number, which are logged).
        evidence: where its channels come from.
        also: other kinds of evidence that it may be computed from; `objective.evidence` then says which. Their knobs
            are knobs of the method too.
        linear: arrays whose coefficients do not depend on any channel's values, so that no pass over the cells is
            needed to know them.
        old_policy: how the old policy moves that the loss compares with, or that samples.
        watched: channels that the loss looks at and is not differentiated by.
        only_with: array -> knob: it is taken, and computed, where the knob is neither 0 nor null; elsewhere the loss
            gets None.
        idle_without: knob -> knob: it has an effect where the other is neither 0 nor null, and may be set there alone.
    """

    loss: Callable[..., tuple[torch.Tensor, dict[str, float]]]
    evidence: Evidence = field(default_factory=Trajectory)
    also: tuple[Evidence, ...] = ()
    linear: tuple[str, ...] = ()
    old_policy: OldPolicy | None = None
    watched: tuple[str, ...] = ()
    only_with: Mapping[str, str] = field(default_factory=dict)
    idle_without: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def arrays(self) -> tuple[str, ...]:
        """Names of all arrays that the loss takes."""
        parameters = inspect.signature(self.loss).parameters.values()
        return tuple(entry.name for entry in parameters if entry.kind is entry.POSITIONAL_OR_KEYWORD)

    @property
    def kinds(self) -> dict[str, Evidence]:
        """The evidence that it may be computed from, by its name; the default comes first."""
        return {evidence.kind: evidence for evidence in (self.evidence, *self.also)}

    @property
    def compares_images(self) -> bool:
        """Whether it needs groups of at least two images."""
        return "group_ids" in self.arrays

    @cached_property
    def loss_knobs(self) -> dict[str, Knob]:
        """Knobs of the loss: its keyword-only parameters."""
        hints = get_type_hints(self.loss, localns={"torch": SimpleNamespace(Tensor=Any)}, include_extras=True)
        parameters = inspect.signature(self.loss).parameters.values()
        return {
            entry.name: Knob(hints[entry.name], entry.default)
            for entry in parameters
            if entry.kind is entry.KEYWORD_ONLY
        }

    @cached_property
    def evidence_knobs(self) -> dict[str, Knob]:
        """Knobs of its evidence, and which one that is."""
        knobs: dict[str, Knob] = {}
        if self.also:
            knobs["evidence"] = Knob(Literal[tuple(self.kinds)], self.evidence.kind)
        for evidence in self.kinds.values():
            knobs |= fields_as_knobs(evidence)
        return knobs

    @cached_property
    def old_policy_knobs(self) -> dict[str, Knob]:
        """Knobs of its old policy."""
        return {} if self.old_policy is None else fields_as_knobs(self.old_policy)

    @property
    def knobs(self) -> dict[str, Knob]:
        """All that a configuration may set."""
        return self.loss_knobs | self.evidence_knobs | self.old_policy_knobs


TERMS_APART = {"reward_terms": "normalise_terms", "reward_weights": "normalise_terms"}
"""`only_with` of methods that can standardise the terms of a weighted sum each by itself."""
_KL_AND_TERMS = {"kl_ref": "beta", **TERMS_APART}
_DENOISING = (Denoising(shared_draws=True),)

OBJECTIVES: dict[str, Method] = {
    "prdp": Method(prdp, also=_DENOISING, old_policy=OldPolicy(), only_with={"log_ratio_old": "clip_range"}),
    "ddpo": Method(ddpo, also=_DENOISING, only_with=TERMS_APART),
    "reinforce": Method(reinforce, also=_DENOISING, linear=("log_importance",), only_with=TERMS_APART),
    "grpo": Method(grpo, also=_DENOISING, linear=("kl_ref",), only_with=_KL_AND_TERMS),
    "tempflow_grpo": Method(tempflow_grpo, linear=("kl_ref",), only_with=_KL_AND_TERMS),
    "grpo_guard": Method(grpo_guard, linear=("kl_ref",), only_with=_KL_AND_TERMS),
    "flow_dppo": Method(flow_dppo, linear=("kl_ref",), watched=("kl_old",), only_with=_KL_AND_TERMS),
    "rebel": Method(rebel, also=_DENOISING),
    "reward_weighted_regression": Method(reward_weighted_regression, Denoising(), linear=("denoising",)),
    "best_of_n": Method(best_of_n, Denoising(), linear=("denoising",)),
    "diffusion_dpo": Method(diffusion_dpo, Denoising(shared_draws=True)),
    "crd": Method(
        crd,
        GuidedReference(shared_draws=True, times="sampler", adaptive_weight=True),
        linear=("kl_ref",),
        old_policy=OldPolicy(old_decay=0.25, old_decay_rise=0.005),
        only_with={"kl_ref": "kl", **TERMS_APART},
        idle_without={"kl_least": "kl", "kl_guidance": "kl"},
    ),
    "nft": Method(
        nft,
        ImplicitPolicies(),
        linear=("positive", "negative", "kl_ref"),
        old_policy=OldPolicy(old_decay_rise=0.001, old_decay_limit=0.5, old_samples=True),
        only_with={"kl_ref": "kl", **TERMS_APART},
    ),
    "fdfo": Method(fdfo, FiniteDifference(), linear=("kl_ref",), only_with={"kl_ref": "kl"}),
    "awm": Method(
        awm,
        DenoisingLikelihood(draws=6, times="sampler_stratified", noisiest=0.9),
        linear=("kl_ref", "kl_old_policy"),
        old_policy=OldPolicy(old_decay_rise=0.001, old_decay_limit=0.3),
        only_with={"kl_old_policy": "beta_old", **_KL_AND_TERMS},
    ),
    "dgpo": Method(
        dgpo,
        GuidedReference(draws=4, shared_draws=True, times="sampler", noisiest=0.7),
        linear=("kl_ref",),
        old_policy=OldPolicy(old_decay_rise=0.001, old_decay_limit=0.3, old_samples=True),
        only_with={"denoising_ref": "frozen_reference", "kl_ref": "kl", **TERMS_APART},
        idle_without={"kl_guidance": "kl"},
    ),
}


@dataclass(frozen=True)
class Coefficients:
    """What an objective says of one full batch.

    Attributes:
        loss: the scalar.
        tables: channel -> float64 of its shape, d loss / d evidence.
        metrics: the objective's own counts.
    """

    loss: float
    tables: dict[str, npt.NDArray[np.float64]]
    metrics: dict[str, float]


@dataclass(frozen=True)
class Objective:
    """A method with its knobs set.

    Attributes:
        name: of OBJECTIVES, or the dotted path of a target.
        method: what it computes.
        knobs: of its loss.
        evidence: where its channels come from, with its knobs set.
        old_policy: how its old policy moves, with its knobs set; None where it has none.
    """

    name: str
    method: Method
    knobs: Mapping[str, Any]
    evidence: Evidence
    old_policy: OldPolicy | None = None

    @cached_property
    def takes(self) -> tuple[str, ...]:
        """Names of the arrays that the loss takes with these knobs."""
        idle = {name for name, knob in self.method.only_with.items() if not self.knobs[knob]}
        return tuple(name for name in self.method.arrays if name not in idle)

    @cached_property
    def arrays(self) -> tuple[str, ...]:
        """Names of the arrays that these are made of: themselves, or what they are differences of."""
        parts = (self.evidence.derived.get(name, (name,)) for name in self.takes)
        return tuple(dict.fromkeys(name for part in parts for name in part))

    @cached_property
    def channels(self) -> tuple[str, ...]:
        """Those of them that it is differentiated by."""
        return tuple(name for name in self.arrays if name in self.evidence.channels)

    @cached_property
    def others(self) -> frozenset[Of]:
        """Whose evidence or output it takes beside the policy's."""
        passes = {of for name, (_, of) in self.evidence.passes.items() if name in self.arrays}
        return frozenset(passes | {of for name, of in self.evidence.others.items() if name in self.arrays})

    @cached_property
    def linear(self) -> tuple[str, ...]:
        """Channels whose coefficients do not depend on any channel's values."""
        bent = {name for name in self.takes if name not in self.method.linear}
        parts = {part for name in bent for part in self.evidence.derived.get(name, (name,))}
        return tuple(name for name in self.channels if name not in parts)

    @cached_property
    def known_as_sampled(self) -> tuple[str, ...]:
        """Channels that the loss takes as differences alone to those of the policy that an epoch's updates start from.

        At its first update all of these are 0, so that no pass is needed to know the coefficients.
        """
        sampled = {name for name, (_, of) in self.evidence.passes.items() if of == "sampled"}
        return tuple(
            channel
            for channel in self.channels
            if channel not in self.takes
            and all(
                pair[1] in sampled
                for pair in (self.evidence.derived[name] for name in self.takes if name in self.evidence.derived)
                if channel in pair
            )
        )

    def coefficients(self, channels: Arrays, data: Arrays, step_weights: npt.ArrayLike | None = None) -> Coefficients:
        """Evaluate on the host in float64 and differentiate with respect to every channel.

        Args:
            channels: name -> evidence [n, T], those of `channels`.
            data: name -> array, the rest of `arrays`: further arrays of the evidence [n, T], rewards and group_ids [n],
                history [n, H], or of M terms [n, H, M], reward_terms [n, M], reward_weights [M].
            step_weights: [T] or [n, T], scales the evidence before the loss sees it; None is all ones.
                Differences are of scaled evidence.

        Raises:
            ValueError: shapes that do not fit; a loss that does not give a differentiable scalar and its counts.
        """
        import torch

        evidence = {
            name: torch.tensor(np.asarray(channels[name], np.float64), requires_grad=True) for name in self.channels
        }
        others = {
            name: torch.tensor(np.asarray(data[name], np.int64 if name == "group_ids" else np.float64))
            for name in self.arrays
            if name not in evidence
        }
        _check_shapes(evidence, others)
        weights = None if step_weights is None else torch.tensor(np.asarray(step_weights, np.float64))

        unscaled = (*BATCH_ARRAYS, *self.evidence.of_steps)

        def weighted(name: str, values: torch.Tensor) -> torch.Tensor:
            return values if weights is None or name in unscaled else values * weights

        parts = {name: weighted(name, values) for name, values in (evidence | others).items()}
        arrays: dict[str, Any] = dict.fromkeys(self.method.arrays)
        for name in self.takes:
            minuend, *subtrahend = self.evidence.derived.get(name, (name,))
            arrays[name] = parts[minuend] - parts[subtrahend[0]] if subtrahend else parts[minuend]
        loss, metrics = loss_result(self.name, self.method.loss(**arrays, **self.knobs))
        gradients = torch.autograd.grad(loss, list(evidence.values()), allow_unused=True)
        tables = {}
        for (name, values), gradient in zip(evidence.items(), gradients, strict=True):
            if gradient is None and name not in self.method.watched:
                raise ValueError(
                    f"the loss {self.name} does not depend on '{name}', or on a detached one: nothing would be learned "
                    "from it; name what it only looks at in its Method, watched=(...)"
                )
            tables[name] = np.zeros(values.shape) if gradient is None else gradient.numpy()
        return Coefficients(loss.item(), tables, metrics)


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
    """Names of those whose evidence does not have to be of the sampler's steps."""
    return [
        name
        for name, method in OBJECTIVES.items()
        if not all(evidence.keeps_steps for evidence in method.kinds.values())
    ]


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


def _check_shapes(evidence: Mapping[str, torch.Tensor], data: Mapping[str, torch.Tensor]) -> None:
    shape = next(iter(evidence.values())).shape
    fits = len(shape) == 2 and all(value.shape == shape for value in evidence.values())
    for name, value in data.items():
        if name == "history":
            fits &= value.dim() in (2, 3) and len(value) == shape[0]
        elif name == "reward_terms":
            fits &= value.dim() == 2 and len(value) == shape[0]
        elif name == "reward_weights":
            fits &= value.shape == data["reward_terms"].shape[1:]
        else:
            fits &= value.shape == (shape[:1] if name in BATCH_ARRAYS else shape)
    if not fits:
        given = ", ".join(f"{name} {tuple(value.shape)}" for name, value in {**evidence, **data}.items())
        expected = "evidence must be [n, T], rewards and group_ids [n], history [n, H], reward_terms [n, M]"
        raise ValueError(f"{given} do not fit: {expected}")
