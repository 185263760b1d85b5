"""Finds the objects of a picture: pixels in, a background and a list of detections with attribute probabilities out.

Works on a 64x64 picture; other sizes are resampled first. Nothing here knows the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from prdp.worlds.shapes.render import STRIPE_SHADE, WIDTHS, Placed, coverage
from prdp.worlds.shapes.scene import BACKGROUNDS, COLORS, FILLS, SHAPES, SIZES, Obj

Floats = NDArray[np.float32]

SIDE = 64
_PATCH = 20
# The patch shows this many times the extent of the object.
_ZOOM = 1.3
# Colours nearer to the background than this are noise.
_MIN_DISTANCE = 38.0
# A blob's edge lies at this part of its largest distance nearby.
_EDGE = 0.38
# Blobs of fewer pixels are ignored; only the largest blobs are measured.
_SPECK = 8
_MOST_BLOBS = 12
_PALETTE = np.array(list(COLORS.values()), dtype=np.float32)
_BACKGROUNDS = np.array(list(BACKGROUNDS.values()), dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Detection:
    """One blob. `x`, `y` and `extent` are in pixels of the 64x64 picture, probabilities in vocabulary order.

    weight: 0 for a speck to 1 for a blob of an object's area. plausible: 0 to 1, how much it looks like any object.
    """

    x: float
    y: float
    extent: float
    weight: float
    plausible: float
    color: Floats
    shape: Floats
    size: Floats
    fill: Floats


def _crossings(profile: Floats) -> tuple[float, float]:
    """Where a profile first and last crosses one half, in pixel edges' coordinates with linear interpolation."""
    inside = np.flatnonzero(profile >= 0.5)
    first, last = int(inside[0]), int(inside[-1])
    low, high = first + 0.5, last + 0.5
    if first > 0:
        low -= (profile[first] - 0.5) / max(profile[first] - profile[first - 1], 1e-6)
    if last + 1 < len(profile):
        high += (profile[last] - 0.5) / max(profile[last] - profile[last + 1], 1e-6)
    return float(low), float(high)


def _patch(alpha: Floats) -> tuple[Floats, float, float, float]:
    """Coverage resampled to a square around the object, float32 [20, 20]; its centre x, y and extent in pixels."""
    x0, x1 = _crossings(alpha.max(0))
    y0, y1 = _crossings(alpha.max(1))
    x, y, extent = (x0 + x1) / 2, (y0 + y1) / 2, max(x1 - x0, y1 - y0)
    reach = extent * _ZOOM / 2
    pad = int(np.ceil(reach)) + 1
    image = Image.fromarray(np.pad(alpha, pad))
    box = (x - reach + pad, y - reach + pad, x + reach + pad, y + reach + pad)
    resized = image.resize((_PATCH, _PATCH), Image.Resampling.BILINEAR, box=box)
    return np.asarray(resized, dtype=np.float32), x, y, extent


def _alpha(distance: Floats, core: NDArray[np.bool_]) -> Floats:
    """Coverage from the distance to the background; the dark and the bright part of stripes should both come to 1."""
    inside = distance[core]
    middle = int(0.4 * (inside.size - 1))
    reference = max(float(np.partition(inside, middle)[middle]), _MIN_DISTANCE)
    # Noise away from the blob would widen its box.
    near = ndimage.maximum_filter(core.view(np.uint8), 3)
    return np.minimum(distance * near / reference, 1.0, dtype=np.float32)


def _norm(vectors: Floats) -> Floats:
    return np.sqrt(np.einsum("...i,...i", vectors, vectors))


@cache
def _prototypes() -> tuple[Floats, Floats, Floats]:
    """Mean patches of every shape, solid and hollow, in both sizes and several blurs.

    Returns the patches float32 [P, 400], their squared lengths [P] and the measured extents relative to the widths
    [P]; P runs over shape, then solid or hollow, then the rest.
    """
    patches, extents = [], []
    for shape, fill, size, blur in product(SHAPES, ("solid", "hollow"), SIZES, (0.0, 0.7, 1.1)):
        width = sum(WIDTHS[size]) / 2
        found = []
        for k in range(6):
            placed = Placed(Obj("red", shape, size, fill), 24 + k / 6, 24 + (k * 5 % 6) / 6, width)
            rows, columns, cover, _ = coverage(placed, 1.0, 48)
            field = np.zeros((48, 48), dtype=np.float32)
            field[rows, columns] = 200 * cover
            field = ndimage.gaussian_filter(field, blur) if blur else field
            found.append(_patch(_alpha(field, field > _EDGE * field.max())))
        patches.append(np.mean([f[0] for f in found], 0).ravel())
        extents.append(np.mean([f[3] for f in found]) / width)
    table = np.array(patches, dtype=np.float32)
    return table, np.square(table).sum(1), np.array(extents, dtype=np.float32)


def _probabilities(costs: Floats, temperature: float, unknown: float) -> Floats:
    """A softmin of costs beside an option "none of these" of cost `unknown`; sums to at most 1."""
    low = min(float(costs.min()), unknown)
    e = np.exp((low - costs) / temperature)
    return e / (e.sum() + np.exp((low - unknown) / temperature))


def _ramp(value: float, low: float, high: float) -> float:
    """0 at `low`, 1 at `high`, linear between and constant outside."""
    return min(max((value - low) / (high - low), 0.0), 1.0)


def _sigmoid(value: float) -> float:
    return 0.5 + 0.5 * float(np.tanh(value / 2))


def _color_costs(pixels: Floats, background: Floats) -> Floats:
    """For each palette colour the part of the pixels' variation that mixtures of it, its dark shade and the background
    leave unexplained; pixels [N, 3] with the background subtracted, result [8]."""
    u = _PALETTE - background
    v = _PALETTE * STRIPE_SHADE - background
    uu, vv, uv = (u * u).sum(1), (v * v).sum(1), (u * v).sum(1)
    pu, pv = pixels @ u.T, pixels @ v.T
    pp = (pixels * pixels).sum(1)[:, None]
    det = uu * vv - uv * uv
    good = det > 0.02 * uu * vv
    det = np.where(good, det, 1.0)
    a = (pu * vv - pv * uv) / det
    b = (pv * uu - pu * uv) / det
    only_u = pp - np.square(np.maximum(pu, 0)) / uu
    only_v = pp - np.square(np.maximum(pv, 0)) / vv
    left = np.minimum(only_u, only_v)
    both = pp - (a * pu + b * pv)
    left = np.where(good & (a > 0) & (b > 0), both, left)
    return np.maximum(left, 0).sum(0) / max(float(pp.sum()), 1e-6)


def _stripe_strength(brightness: Floats, alpha: Floats, x: float) -> float:
    """How unlike its mirror image the inside of an object is, relative to its brightness; every shape is symmetric."""
    columns = np.arange(brightness.shape[1])
    mirrored = 2 * x - 1 - columns
    low = np.floor(mirrored).astype(int)
    part = (mirrored - low).astype(np.float32)
    last = brightness.shape[1] - 1
    a, b = np.clip(low, 0, last), np.clip(low + 1, 0, last)
    other = brightness[:, a] * (1 - part) + brightness[:, b] * part
    # Squared, so that the rims count little: there the coverage differs from side to side.
    weight = np.square(alpha * (alpha[:, a] * (1 - part) + alpha[:, b] * part))
    return float((weight * np.abs(brightness - other)).sum() / max((weight * brightness).sum(), 1e-6))


def _blobs(distance: Floats) -> list[NDArray[np.bool_]]:
    """Masks of the connected foreground parts, largest first; parts whose boxes overlap are one blob."""
    # The threshold follows the brightest neighbour, so that blurred rims don't bridge the gap between two objects.
    mask = distance > np.maximum(_MIN_DISTANCE, _EDGE * ndimage.maximum_filter(distance, 9))
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    boxes = ndimage.find_objects(labels)
    order = [k for k in np.argsort(-areas[1:], kind="stable").tolist() if areas[k + 1] >= _SPECK][:_MOST_BLOBS]
    groups: list[tuple[list[int], list[int]]] = []
    for k in order:
        rows, columns = boxes[k]
        box = [rows.start, rows.stop, columns.start, columns.stop]
        parts = [k + 1]
        apart = []
        for other, ids in groups:
            if box[0] < other[1] and other[0] < box[1] and box[2] < other[3] and other[2] < box[3]:
                box = [min(box[0], other[0]), max(box[1], other[1]), min(box[2], other[2]), max(box[3], other[3])]
                parts += ids
            else:
                apart.append((other, ids))
        groups = [*apart, (box, parts)]
    found = [np.isin(labels, ids) if len(ids) > 1 else labels == ids[0] for _, ids in groups]
    return sorted(found, key=lambda m: -int(m.sum()))


def _describe(
    difference: Floats, distance: Floats, background: Floats, own: NDArray[np.bool_], others: NDArray[np.bool_]
) -> Detection:
    """Measures one blob: `own` marks its pixels, `others` those of the other blobs."""
    area = int(own.sum())
    ys, xs = np.flatnonzero(own.any(1)), np.flatnonzero(own.any(0))
    rows = slice(max(int(ys[0]) - 2, 0), int(ys[-1]) + 3)
    columns = slice(max(int(xs[0]) - 2, 0), int(xs[-1]) + 3)
    own, pixels = own[rows, columns], difference[rows, columns]
    alpha = _alpha(np.where(others[rows, columns], 0, distance[rows, columns]), own)
    patch, x, y, extent = _patch(alpha)

    prototypes, lengths, extents = _prototypes()
    flat = patch.ravel()
    misfit = np.maximum(lengths - 2 * (prototypes @ flat) + flat @ flat, 0) / flat.size
    best = int(misfit.argmin())
    solid_costs, hollow_costs = misfit.reshape(len(SHAPES), 2, -1).min(2).T
    shape_costs = np.minimum(solid_costs, hollow_costs)
    looks = int(shape_costs.argmin())
    width = extent / float(extents[best])
    large = _sigmoid((width - 19.7) / 0.7)

    color_costs = _color_costs(pixels[own], background)
    color = _PALETTE[color_costs.argmin()]
    brightness = np.maximum((pixels + background) @ (color / np.linalg.norm(color)), 0)
    hollow = _sigmoid(float(solid_costs[looks] - hollow_costs[looks] + 0.002) / 0.003)
    striped = _sigmoid((_stripe_strength(brightness, alpha, x) - 0.1) / 0.012)
    fill = {"solid": (1 - hollow) * (1 - striped), "hollow": hollow, "striped": (1 - hollow) * striped}
    size = {"small": 1 - large, "large": large}
    return Detection(
        x=x + columns.start,
        y=y + rows.start,
        extent=extent,
        weight=_ramp(area, _SPECK, 30),
        plausible=float(np.exp(-max(float(misfit[best]) - 0.02, 0) / 0.03))
        * _ramp(width, 9, 12)
        * _ramp(width, 34, 29),
        color=_probabilities(color_costs, 0.008, 0.15),
        shape=_probabilities(shape_costs, 0.004, 0.05),
        size=np.array([size[name] for name in SIZES], dtype=np.float32),
        fill=np.array([fill[name] for name in FILLS], dtype=np.float32),
    )


def detect(image: NDArray[np.uint8]) -> tuple[Floats, list[Detection]]:
    """The probabilities of the backgrounds, float32 [4] with a sum of at most 1, and the detected blobs, largest first.

    image: uint8 [H, W, 3], any size. Raises ValueError for another dtype or shape.
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        got = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"image is {got}, expected a uint8 array [H, W, 3]")
    if 0 in image.shape:
        raise ValueError(f"image has shape {list(image.shape)}, expected at least one pixel")
    if image.shape[:2] != (SIDE, SIDE):
        image = np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    pixels = image.astype(np.float32)
    border = np.concatenate([part.reshape(-1, 3) for part in (pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:])])
    background = np.median(border, axis=0)
    spread = np.square(border - background).sum(1)
    uniform = float((spread < 45**2).mean())
    # The mean square of noise from its median (a chi-square law of three degrees), so that objects don't bias it.
    noise = min(1.27 * float(np.median(spread)), 30.0**2)
    costs = _norm(_BACKGROUNDS - background)
    backgrounds = _probabilities(costs, 8.0, 60.0) * _ramp(uniform, 0.5, 0.9)

    difference = pixels - background
    distance = np.sqrt(np.maximum(np.einsum("hwc,hwc->hw", difference, difference) - noise, 0))
    blobs = _blobs(_norm(ndimage.gaussian_filter(difference, (0.6, 0.6, 0))))
    everything = np.any(blobs, axis=0) if blobs else np.zeros((SIDE, SIDE), dtype=bool)
    return backgrounds, [_describe(difference, distance, background, own, everything & ~own) for own in blobs]
