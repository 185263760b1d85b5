"""What becomes of one layer when experts are merged: pure functions of its factors.

Everything is said of deltas, alpha / rank * B A, which are what a layer's weight grows by. Factors are never averaged
apart: the mean of A times the mean of B has cross terms of experts that have nothing to do with each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from prdp.diffusion.adapter_files import AdaptedLayer


@dataclass(frozen=True)
class Part:
    """One expert's share of a layer.

    Attributes:
        weight: by which its delta counts.
        layer: its factors.
        seed: of what is drawn for it.
    """

    weight: float
    layer: AdaptedLayer
    seed: int = 0


@dataclass(frozen=True)
class MergedLayer:
    """Factors of a merged layer, float32 with alpha = rank, and what the rank could not hold.

    Attributes:
        layer: the factors.
        size: Frobenius norm of the delta that was to be held.
        lost: Frobenius norm of what the factors leave out of it.
    """

    layer: AdaptedLayer
    size: float
    lost: float

    @property
    def error(self) -> float:
        """Relative; 0 of a delta that is zero."""
        return self.lost / self.size if self.size > 0 else 0.0


def delta(layer: AdaptedLayer) -> torch.Tensor:
    """What a layer's weight grows by, as a matrix: float32 [out, in * kernel * kernel]."""
    return layer.scale * (layer.up.float().flatten(1) @ layer.down.float().flatten(1))


def concatenated(parts: Sequence[Part]) -> AdaptedLayer:
    """The weighted sum of deltas, exactly: [w_i s_i B_i] beside each other and [A_i] above each other; float32.

    Its rank is the sum of the ranks, its scale 1.
    """
    down = torch.cat([part.layer.down.float() for part in parts], 0)
    up = torch.cat([part.weight * part.layer.scale * part.layer.up.float() for part in parts], 1)
    return AdaptedLayer(down, up, 1.0)


def norm(layer: AdaptedLayer) -> float:
    """Frobenius norm of a layer's delta, from R x R numbers where R is its rank."""
    up, down = layer.up.double().flatten(1), layer.down.double().flatten(1)
    return abs(layer.scale) * math.sqrt(max(0.0, float(((up.T @ up) * (down @ down.T)).sum())))


def truncated(layer: AdaptedLayer, rank: int) -> MergedLayer:
    """The nearest delta of a rank, by singular values, where the layer's factors have a larger one than that, or than
    any delta of its shape can have; others stay as they are.

    With R the layer's rank the work is on R x R numbers: of QR factors of B and of A transposed. In float64.

    References:
        Eckart and Young, The approximation of one matrix by another of lower rank, 1936.
    """
    up, down = layer.up.double().flatten(1) * layer.scale, layer.down.double().flatten(1)
    left, inner = torch.linalg.qr(up)
    right, outer = torch.linalg.qr(down.T)
    vectors, values, others = torch.linalg.svd(inner @ outer.T)
    size = float(values.norm())
    if layer.rank <= min(rank, len(up), down.shape[1]):
        return MergedLayer(AdaptedLayer(layer.down.float(), layer.scale * layer.up.float(), 1.0), size, 0.0)
    return _factors(left @ vectors, values, others @ right.T, rank, layer)


def factorised(matrix: torch.Tensor, like: AdaptedLayer, rank: int | None) -> MergedLayer:
    """Factors of a delta [out, in * kernel * kernel], of a rank or of its own.

    Args:
        like: has the shape of the kernel.
        rank: None takes the numerical rank, at least 1.
    """
    left, values, right = _svd(matrix)
    own = int((values > values[0] * max(matrix.shape) * torch.finfo(matrix.dtype).eps).sum())
    return _factors(left, values, right, max(1, own if rank is None else min(rank, own)), like)


def _svd(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Thin singular value decomposition; of a long matrix by its QR factor, which is several times faster."""
    rows, columns = matrix.shape
    if columns < 2 * rows:
        if rows < 2 * columns:
            left, values, right = torch.linalg.svd(matrix, full_matrices=False)
            return left, values, right
        left, values, right = _svd(matrix.T)
        return right.T, values, left.T
    basis, inner = torch.linalg.qr(matrix.T)
    left, values, right = torch.linalg.svd(inner.T)
    return left, values, right @ basis.T


def _factors(
    left: torch.Tensor, values: torch.Tensor, right: torch.Tensor, rank: int, like: AdaptedLayer
) -> MergedLayer:
    kept = min(rank, len(values))
    root = values[:kept].clamp(min=0).sqrt()
    inside = like.down.shape[1:]
    up = (left[:, :kept] * root).float().reshape(-1, kept, *(1 for _ in inside[1:]))
    down = (root[:, None] * right[:kept]).float().reshape(kept, *inside)
    lost = float(values[kept:].norm()) if kept < len(values) else 0.0
    return MergedLayer(AdaptedLayer(down, up, 1.0), float(values.norm()), lost)


def ties(parts: Sequence[Part], density: float) -> torch.Tensor:
    """TIES of deltas, [out, in * kernel * kernel]: trim, elect a sign, average those that agree.

    Trimming keeps the largest entries of each expert's delta of this layer. The sign of an entry is that of the
    weighted sum; the average is by the weights of the experts whose trimmed entry has it.

    Args:
        density: share of the entries kept, above 0 and at most 1.

    References:
        Yadav et al., TIES-Merging: resolving interference when merging models, NeurIPS 2023, algorithm 1.
    """
    trimmed = [_largest(delta(part.layer), density) for part in parts]
    sign = sum(part.weight * one for part, one in zip(parts, trimmed, strict=True))
    assert isinstance(sign, torch.Tensor)
    positive = sign >= 0
    total, weights = torch.zeros_like(sign), torch.zeros_like(sign)
    for part, one in zip(parts, trimmed, strict=True):
        agrees = (one > 0) & positive | (one < 0) & ~positive
        total += part.weight * one * agrees
        weights += part.weight * agrees
    return total / weights.clamp(min=torch.finfo(weights.dtype).tiny)


def dare(parts: Sequence[Part], density: float) -> torch.Tensor:
    """The weighted sum of deltas whose entries were dropped at random, and the others divided by their share.

    Args:
        density: share of the entries kept, above 0 and at most 1.

    References:
        Yu et al., Language models are super Mario: absorbing abilities from homologous models as a free lunch, ICML
        2024, section 3.2.
    """
    total: torch.Tensor | None = None
    for part in parts:
        one = delta(part.layer)
        generator = torch.Generator().manual_seed(part.seed)
        kept = torch.rand(one.shape, generator=generator) < density
        share = part.weight * one * kept / density
        total = share if total is None else total + share
    assert total is not None
    return total


def _largest(matrix: torch.Tensor, density: float) -> torch.Tensor:
    """The entries of largest magnitude, the others 0; as many as the share comes to, and at least one."""
    flat = matrix.flatten()
    chosen = flat.abs().topk(max(1, math.floor(density * flat.numel()))).indices
    kept = torch.zeros_like(flat)
    kept[chosen] = flat[chosen]
    return kept.view_as(matrix)
