"""What a method is: a loss, and what it is computed from."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from prdp.evidence import Evidence, OldPolicy, Trajectory
from prdp.objectives._knobs import Knob, fields_as_knobs

if TYPE_CHECKING:
    import torch


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
        by_group: whether the coefficients of an image take the evidence of its group alone. They are then found in the
            pass with gradient, where a microbatch holds a group.
        idle_without: knob -> knob: it has an effect where the other is neither 0 nor null, and may be set there alone.
        idle_unless: knob -> (knob, value): likewise, where the other has that value.
    """

    loss: Callable[..., tuple[torch.Tensor, dict[str, float]]]
    evidence: Evidence = field(default_factory=Trajectory)
    also: tuple[Evidence, ...] = ()
    linear: tuple[str, ...] = ()
    old_policy: OldPolicy | None = None
    watched: tuple[str, ...] = ()
    only_with: Mapping[str, str] = field(default_factory=dict)
    by_group: bool = False
    idle_without: Mapping[str, str] = field(default_factory=dict)
    idle_unless: Mapping[str, tuple[str, Any]] = field(default_factory=dict)

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

    @property
    def takes_rewards(self) -> bool:
        """Whether it learns from rewards at all."""
        return bool({"rewards", "reward_terms", "history"} & set(self.arrays))

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
