"""Draws scenes: `layout` chooses places, `draw` paints them, `render` does both.

All lengths are in units of 1/64 of the image side, so that every image size shows the same picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from prdp.worlds.shapes.scene import BACKGROUNDS, COLORS, RELATIONS, Obj, Scene

UNITS = 64.0
MARGIN = 2.0
GAP = 3.0
WIDTHS: dict[str, tuple[float, float]] = {"small": (15.0, 16.5), "large": (23.0, 25.0)}
# Widths of the stripes; dark ones have their colour scaled by STRIPE_SHADE.
STRIPE: dict[str, float] = {"small": 3.4, "large": 4.2}
STRIPE_SHADE = 0.55
COLOR_JITTER = 8
BACKGROUND_JITTER = 4
_SUPERSAMPLE = 4
_TRIES = 128


@dataclass(frozen=True, slots=True)
class Placed:
    """An object's place: centre and width of its box, in units of 1/64 of the image side; y points down."""

    obj: Obj
    x: float
    y: float
    width: float


@cache
def outline(shape: str) -> NDArray[np.float64]:
    """The corners of a shape, float64 [K, 2] as (x, y), inside the box [-1, 1]^2 with y pointing down.

    Raises ValueError for an unknown shape.
    """
    if shape == "circle":
        angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        points = np.stack([np.cos(angle), np.sin(angle)], 1)
    elif shape == "square":
        # Slightly less than its box: a full box looks far larger than the other shapes.
        points = 0.93 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], dtype=float)
    elif shape == "triangle":
        points = np.array([(0, -0.95), (1, 0.9), (-1, 0.9)], dtype=float)
    elif shape == "diamond":
        points = np.array([(0, -1), (1, 0), (0, 1), (-1, 0)], dtype=float)
    elif shape == "star":
        angle = -np.pi / 2 + np.arange(10) * np.pi / 5
        radius = np.where(np.arange(10) % 2 == 0, 1.05, 0.46)
        points = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1) + (0, 0.08)
    elif shape == "cross":
        w = 0.37
        points = np.array(
            [(-w, -1), (w, -1), (w, -w), (1, -w), (1, w), (w, w), (w, 1), (-w, 1), (-w, w), (-1, w), (-1, -w), (-w, -w)]
        )
    else:
        raise ValueError(f"shape is {shape!r}, expected circle, square, triangle, diamond, star or cross")
    return points


# A hollow shape's hole is the shape shrunk by this factor; thin shapes get a smaller hole, or their rims would vanish.
HOLE: dict[str, float] = {"circle": 0.55, "square": 0.55, "triangle": 0.5, "diamond": 0.52, "star": 0.46, "cross": 0.48}
# The point that the hole shrinks towards, so that the rim is equally thick all round.
_HOLE_CENTRE: dict[str, tuple[float, float]] = {"triangle": (0.0, 0.3), "star": (0.0, 0.08)}


def layout(scene: Scene, rng: np.random.Generator) -> tuple[Placed, ...]:
    """Chooses sizes and places, one Placed per object in the order of `scene.objects`.

    Boxes stay MARGIN inside the frame and GAP apart, and the offset between the first two centres is at least 1.5
    times as long along the relation's axis as across it.
    """
    count = len(scene.objects)
    while True:
        low, high = np.array([WIDTHS[o.size] for o in scene.objects]).T
        width = low + (high - low) * rng.random(count)
        reach = (UNITS - 2 * MARGIN) - width
        xy = MARGIN + width[:, None] / 2 + rng.random((_TRIES, count, 2)) * reach[:, None]
        good = np.ones(_TRIES, dtype=bool)
        if scene.relation is not None:
            axis, sign = RELATIONS[scene.relation]
            offset = xy[:, 0] - xy[:, 1]
            good &= sign * offset[:, axis] > 1.5 * np.abs(offset[:, 1 - axis])
        for i in range(count):
            for j in range(i):
                apart = np.abs(xy[:, i] - xy[:, j]).max(axis=1)
                good &= apart >= (width[i] + width[j]) / 2 + GAP
        pick = int(good.argmax())
        if good[pick]:
            places = xy[pick].tolist()
            return tuple(Placed(o, x, y, w) for o, (x, y), w in zip(scene.objects, places, width.tolist(), strict=True))


def coverage(
    placed: Placed, scale: float, size: int
) -> tuple[slice, slice, NDArray[np.float32], NDArray[np.float32] | None]:
    """The pixels that an object touches, the part of each that it covers, and the part that its dark stripes cover."""
    half = placed.width / 2
    box = np.array([placed.x - half, placed.y - half, placed.x + half, placed.y + half]) * scale
    x0, y0 = np.maximum(np.floor(box[:2]).astype(int), 0).tolist()
    x1, y1 = np.minimum(np.ceil(box[2:]).astype(int), size).tolist()
    s = _SUPERSAMPLE
    mask = Image.new("L", ((x1 - x0) * s, (y1 - y0) * s), 0)
    pen = ImageDraw.Draw(mask)
    # PIL's integer coordinates name pixel centres, hence the half pixel.
    centre = np.array([placed.x * scale - x0, placed.y * scale - y0]) * s - 0.5
    points = outline(placed.obj.shape)
    pen.polygon((centre + points * (half * scale * s)).ravel().tolist(), fill=255)
    if placed.obj.fill == "hollow":
        hub = np.array(_HOLE_CENTRE.get(placed.obj.shape, (0.0, 0.0)))
        hole = hub + (points - hub) * HOLE[placed.obj.shape]
        pen.polygon((centre + hole * (half * scale * s)).ravel().tolist(), fill=0)
    cover: NDArray[np.float32] = np.asarray(mask.reduce(s), dtype=np.float32) / np.float32(255)
    dark: NDArray[np.float32] | None = None
    if placed.obj.fill == "striped":
        # Diagonal bands: a level or upright band would fall together with the bars of a cross.
        along_y = np.arange((y1 - y0) * s) - centre[1]
        along_x = np.arange((x1 - x0) * s) - centre[0]
        band = np.rint((along_y[:, None] + along_x) / (np.sqrt(2) * STRIPE[placed.obj.size] * scale * s))
        stripe = np.asarray(mask, dtype=np.float32) * (band % 2 == 1)
        dark = stripe.reshape(y1 - y0, s, x1 - x0, s).mean((1, 3), dtype=np.float32) / np.float32(255)
    return slice(y0, y1), slice(x0, x1), cover, dark


def draw(
    places: tuple[Placed, ...], background: str, rng: np.random.Generator, image_size: int = 64
) -> NDArray[np.uint8]:
    """Paints placed objects on a background with slight random changes of the colours; uint8 [H, W, 3], H = W = size.

    Raises ValueError for an unknown background or an image_size under 16.
    """
    if background not in BACKGROUNDS:
        raise ValueError(f"background is {background!r}, expected one of {', '.join(BACKGROUNDS)}")
    if image_size < 16:
        raise ValueError(f"image_size is {image_size}, expected at least 16")
    jitter = rng.uniform(-1, 1, (1 + len(places), 3)).astype(np.float32)
    image = np.empty((image_size, image_size, 3), dtype=np.float32)
    image[:] = np.array(BACKGROUNDS[background], dtype=np.float32) + BACKGROUND_JITTER * jitter[0]
    for placed, shift in zip(places, jitter[1:], strict=True):
        color = np.clip(np.array(COLORS[placed.obj.color], dtype=np.float32) + COLOR_JITTER * shift, 0, 255)
        rows, columns, cover, dark = coverage(placed, image_size / UNITS, image_size)
        paint = cover[..., None] * color
        if dark is not None:
            paint -= dark[..., None] * (color * (1 - STRIPE_SHADE))
        image[rows, columns] = image[rows, columns] * (1 - cover[..., None]) + paint
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def render(scene: Scene, rng: np.random.Generator, image_size: int = 64) -> NDArray[np.uint8]:
    """A picture of a scene, uint8 [H, W, 3] with H = W = image_size; places, widths and colours vary with `rng`.

    Raises ValueError for an image_size under 16.
    """
    return draw(layout(scene, rng), scene.background, rng, image_size)
