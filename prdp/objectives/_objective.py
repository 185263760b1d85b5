"""A method with its knobs set, and what it says of a batch: the coefficients of its evidence."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from prdp.evidence import Evidence, OldPolicy
from prdp.evidence.base import Of
from prdp.objectives._method import Method
from prdp.objectives._soundness import BATCH_ARRAYS, loss_result

if TYPE_CHECKING:
    import torch

Arrays = Mapping[str, npt.ArrayLike]


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
    def found_beside(self) -> tuple[str, ...]:
        """Data of the evidence's passes that takes none where the channels are computed."""
        return tuple(name for name in self.evidence.found_beside(self.channels) if name in self.arrays)

    def costs_nothing(self, channel: str) -> bool:
        """Whether a channel takes no output of another network, or one that data is found beside."""
        of = self.evidence.others.get(channel)
        return of is None or of in {self.evidence.beside[name] for name in self.found_beside}

    @cached_property
    def linear(self) -> tuple[str, ...]:
        """Channels whose coefficients do not depend on any channel's values."""
        bent = {name for name in self.takes if name not in self.method.linear}
        parts = {part for name in bent for part in self.evidence.derived.get(name, (name,))}
        return tuple(name for name in self.channels if name not in parts)

    def known_beside(self, own: Collection[str]) -> tuple[str, ...]:
        """Channels that the loss takes as differences alone to what is their own value.

        All of these are 0, so that no pass is needed to know the coefficients.

        Args:
            own: data of the evidence's passes whose policy has the weights of the one that learns.
        """
        return tuple(
            channel
            for channel in self.channels
            if channel not in self.takes
            and all(
                pair[1] in own
                for pair in (self.evidence.derived[name] for name in self.takes if name in self.evidence.derived)
                if channel in pair
            )
        )

    def found_with_gradient(self, cells_per_group: int, microbatch: int, exact: bool) -> bool:
        """Whether coefficients that take the evidence are found in the pass with gradient, a group at a time.

        Args:
            cells_per_group: images of a prompt times columns.
            microbatch: cells that have a gradient at a time.
            exact: whether that pass tells evidence; else it takes a pass of its own.
        """
        return self.method.by_group and cells_per_group <= microbatch and exact

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
