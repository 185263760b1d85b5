from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from prdp.worlds.shapes.render import GAP, MARGIN, UNITS, WIDTHS, draw, layout, outline, render
from prdp.worlds.shapes.scene import BACKGROUNDS, COLORS, RELATIONS, SHAPES, Obj, Scene, random_scene

THREE_LARGE = Scene(
    tuple(Obj(color, "square", "large", "solid") for color in ("red", "green", "blue")), "left of", "white"
)


def test_layout_rules() -> None:
    rng = np.random.default_rng(0)
    for scene in [random_scene(rng) for _ in range(300)] + [THREE_LARGE] * 50:
        places = layout(scene, rng)
        assert tuple(p.obj for p in places) == scene.objects
        for i, p in enumerate(places):
            low, high = WIDTHS[p.obj.size]
            assert low <= p.width <= high
            assert min(p.x, p.y) - p.width / 2 >= MARGIN
            assert max(p.x, p.y) + p.width / 2 <= UNITS - MARGIN
            for q in places[:i]:
                assert max(abs(p.x - q.x), abs(p.y - q.y)) >= (p.width + q.width) / 2 + GAP
        if scene.relation is not None:
            axis, sign = RELATIONS[scene.relation]
            offset = (places[0].x - places[1].x, places[0].y - places[1].y)
            assert sign * offset[axis] > 1.5 * abs(offset[1 - axis])


@pytest.mark.parametrize("image_size", [32, 64, 128])
def test_image(image_size: int) -> None:
    rng = np.random.default_rng(1)
    for _ in range(30):
        scene = random_scene(rng)
        image = render(scene, rng, image_size)
        assert image.shape == (image_size, image_size, 3)
        assert image.dtype == np.uint8
        background = np.array(BACKGROUNDS[scene.background])
        assert np.abs(image[0].astype(int) - background).max() <= 5
        distance = np.linalg.norm(image.astype(float) - image[0, 0], axis=2)
        if image_size >= 64:
            assert ndimage.label(distance > 30, np.ones((3, 3)))[1] == len(scene.objects)


@pytest.mark.parametrize("color", COLORS)
def test_solid_color(color: str) -> None:
    rng = np.random.default_rng(2)
    scene = Scene((Obj(color, "square", "large", "solid"),), None, "gray")
    places = layout(scene, rng)
    pixel = draw(places, "gray", rng)[round(places[0].y), round(places[0].x)]
    assert np.abs(pixel.astype(int) - np.array(COLORS[color])).max() <= 9


def test_fills_differ_inside() -> None:
    spread, centre = {}, {}
    for fill in ("solid", "hollow", "striped"):
        rng = np.random.default_rng(3)
        scene = Scene((Obj("red", "circle", "large", fill),), None, "white")
        places = layout(scene, rng)
        image = draw(places, "white", rng).astype(float)
        x, y = round(places[0].x), round(places[0].y)
        spread[fill] = image[y - 6 : y + 6, x - 6 : x + 6, 0].std()
        centre[fill] = image[y, x, 1]
    assert spread["solid"] < 1 < 20 < spread["striped"]
    assert centre["hollow"] > 240
    assert centre["solid"] < 60


def test_same_seed_same_image() -> None:
    scene = random_scene(np.random.default_rng(4), 3)
    first, second, other = (render(scene, np.random.default_rng(seed)) for seed in (7, 7, 8))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


def test_outlines_fit_their_box_and_are_symmetric() -> None:
    for shape in SHAPES:
        points = outline(shape)
        assert 0.9 < np.abs(points).max() <= 1.001
        mirrored = {(round(-x, 6) + 0.0, round(y, 6) + 0.0) for x, y in points.tolist()}
        assert mirrored == {(round(x, 6) + 0.0, round(y, 6) + 0.0) for x, y in points.tolist()}


def test_errors() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="image_size is 8, expected at least 16"):
        render(THREE_LARGE, rng, 8)
    with pytest.raises(ValueError, match="background is 'navy'"):
        draw((), "navy", rng)
    with pytest.raises(ValueError, match="shape is 'heart'"):
        outline("heart")
