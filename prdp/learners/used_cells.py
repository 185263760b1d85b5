"""Which cells an update takes passes for: those that the loss depends on, or depends on most."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from prdp.evidence.base import Channels
from prdp.objectives import Objective
from prdp.types import Float64, Int64

Tables = Mapping[str, Float64]

_SCALES = (1e-6, 1e-2, 1.0)
"""Sizes of the evidence at which images that a loss never mentions are told from those whose coefficients cancel."""


def mentioned(tables_at: Callable[[Channels], Tables], around: Channels) -> Int64:
    """Flat cells of the images that a loss mentions, ascending; all of them where it mentions none.

    An image that the loss mentions may have coefficients that cancel at one value of the evidence, such as the second
    of three in pairwise losses, but not at random ones. A clip acts on one side, so that a cell beyond it is within
    where all differences have the other sign. A hinge that is out of reach at one size of the evidence is within at
    another.

    Args:
        tables_at: coefficients [n, T] at evidence of these names; they may be infinite.
        around: name -> evidence [n, T] to try values around, that of the policy that sampled.
    """
    rng = np.random.default_rng(0)
    shape = next(iter(around.values())).shape
    used = np.zeros(shape[0], bool)
    for scale in _SCALES:
        away = {name: scale * rng.standard_normal(shape) for name in around}
        for sign in (1.0, -1.0):
            tables = tables_at({name: values + sign * away[name] for name, values in around.items()})
            for table in tables.values():
                used |= (table != 0).any(1)
    return np.flatnonzero(np.repeat(used, shape[1])) if used.any() else np.arange(np.prod(shape))


def strongest(tables: Tables, cells: Int64, share: float) -> tuple[Int64, float]:
    """Cells worth a pass with gradient, and what is lost without the others.

    Args:
        tables: channel -> coefficients [n, T].
        cells: flat, to choose from.
        share: of a channel's largest coefficient, in size. A cell stays where any of its coefficients is above it. 0
            leaves out cells without a coefficient alone, which is exact.

    Returns:
        the cells, all of them where none has a coefficient, and the share of the sum of absolute coefficients that is
        left out, the largest of any channel's.
    """
    sizes = [np.abs(table).ravel()[cells] for table in tables.values()]
    kept = np.any([size > share * size.max(initial=0.0) for size in sizes], axis=0)
    if not kept.any():
        return cells, 0.0
    lost = max((float(size[~kept].sum() / size.sum()) for size in sizes if size.any()), default=0.0)
    return cells[kept], lost


def filled(found: Channels, sampled: Channels, cells: Int64) -> Channels:
    """Evidence [n, T] with that of the policy that sampled, where it is known, at all other cells.

    Args:
        found: at `cells`.
        sampled: of the policy that sampled.
        cells: flat.
    """
    whole = dict(found)
    for name in found.keys() & sampled.keys():
        whole[name] = values = sampled[name].astype(np.float64)
        values.ravel()[cells] = found[name].ravel()[cells]
    return whole


def used(
    objective: Objective,
    names: Sequence[str],
    data: Mapping[str, np.ndarray],
    sampled: Mapping[str, Float64],
    shape: tuple[int, int],
) -> Int64:
    """Flat cells of the images that a loss mentions; no pass is needed for the others.

    Args:
        names: channels and data that are evidence.
        data: what the loss takes besides evidence.
        sampled: evidence of the policy that sampled, as far as it is known.
        shape: of evidence, [n, T].
    """
    around = {name: sampled.get(name, np.zeros(shape)) for name in names}
    return mentioned(lambda values: objective.coefficients(values, {**data, **values}).tables, around)
