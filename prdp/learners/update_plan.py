"""Which evidence an update takes passes for, and in which of them its coefficients are found.

One plan for the learner and for what tells the passes of a configuration.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from prdp.evidence.base import Of
from prdp.learners.precision import tells_evidence
from prdp.objectives import Objective


class Precisions(NamedTuple):
    """What an update computes in: `learner.autocast` or `model.dtype`, and see `evidence_precision`."""

    gradient: str
    evidence: str

    @property
    def tell(self) -> bool:
        """See `tells_evidence`."""
        return tells_evidence(self.gradient, self.evidence)


@dataclass(frozen=True)
class UpdatePlan:
    """What an update needs of the evidence.

    Attributes:
        before: channels whose evidence takes a pass of the policy before the pass with gradient; none where the
            coefficients are known without, or found in that one.
        at_once: whether coefficients are found in the pass with gradient, of whole groups.
        beside: data that is found where these channels are computed, and takes no pass of its own.
        further: data that takes a pass of its own -> the channel that it is, and whose.
        own: data of policies that have the weights of the one that learns: channels are this data, too.
        rounded: what coefficients depend on and is computed in less than float32 -> the channel that it is, and whose.
    """

    before: tuple[str, ...]
    at_once: bool
    beside: tuple[str, ...]
    further: Mapping[str, tuple[str, Of]]
    own: tuple[str, ...]
    rounded: Mapping[str, tuple[str, Of]]


def plan_update(
    objective: Objective,
    precisions: Precisions,
    cells_per_group: int,
    microbatch: int,
    sampled: Collection[str],
    alike: Collection[Of],
) -> UpdatePlan:
    """The passes of one update.

    Args:
        cells_per_group: images of a prompt times columns.
        microbatch: cells of a pass.
        sampled: channels whose evidence the sampler has stored, of the very weights that learn.
        alike: whose weights those of the learning policy are, see `alike_policies`.
    """
    evidence, channels = objective.evidence, objective.channels
    passes = further_passes(objective)
    own = tuple(name for name, (_, of) in passes.items() if of in alike)
    linear = {*objective.linear, *objective.known_beside(own)}
    guard = evidence.guard(channels)
    if not precisions.tell:
        linear -= {guard}  # the pass with gradient would tell a drift that is rounding
    needed = [name for name in channels if name not in linear]
    known = all(name in sampled for name in needed)
    at_once = not known and objective.found_with_gradient(cells_per_group, microbatch, precisions.tell)
    # Where evidence is more exact than the gradient, it is a metric of the other channels, too, if that costs nothing.
    apart = not precisions.tell and precisions.gradient != precisions.evidence and not known
    before = [name for name in channels if name in needed or (apart and objective.costs_nothing(name))]
    beside = objective.found_beside if at_once or apart else ()
    # What is found in a pass with gradient that is float32 has no error.
    exact = {*channels, *own, *beside} if at_once and precisions.gradient == "float32" else set[str]()
    return UpdatePlan(
        before=() if known or at_once else tuple(before),
        at_once=at_once,
        beside=beside,
        further={name: where for name, where in passes.items() if name not in own and name not in beside},
        own=own,
        rounded=_sources(objective, own, exact) if precisions.evidence != "float32" else {},
    )


def further_passes(objective: Objective) -> dict[str, tuple[str, Of]]:
    """What an objective asks for that takes passes beside those of its channels; see `Evidence.passes`."""
    return {name: where for name, where in objective.evidence.passes.items() if name in objective.arrays}


def alike_policies(objective: Objective, first: bool, old_unmoved: bool) -> set[Of]:
    """Whose weights those of the learning policy are.

    Args:
        first: whether it is an epoch's first update.
        old_unmoved: whether the old policy, if there is one, has the weights of the learning one.
    """
    old, found = objective.old_policy, set[Of]({"sampled"} if first else ())
    if old is not None and old_unmoved:
        found |= {"old", "reference"} if old.old_is_reference else {"old"}
    return found


def _sources(objective: Objective, own: Collection[str], exact: Collection[str]) -> dict[str, tuple[str, Of]]:
    """Arrays that coefficients depend on, of those that are evidence -> the channel that it is, and whose.

    Differences of a policy's evidence to its own are 0, whatever that is.

    Args:
        exact: those that are left out, as they are computed without rounding.
    """
    pairs = [pair for name, pair in objective.evidence.derived.items() if name in objective.takes]
    nothing = {*objective.linear, *exact, *objective.known_beside(own)}
    nothing |= {name for name in own if all(pair[0] in nothing for pair in pairs if name in pair)}
    found: dict[str, tuple[str, Of]] = {name: (name, "policy") for name in objective.channels}
    for name, (channel, of) in further_passes(objective).items():
        found[name] = channel, "policy" if name in own else of
    return {name: source for name, source in found.items() if name not in nothing}
