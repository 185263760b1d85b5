from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from prdp.worlds.shapes.grammar import caption, parse
from prdp.worlds.shapes.scene import BACKGROUNDS, COLORS, FILLS, RELATIONS, SHAPES, SIZES, random_scene
from prdp.worlds.shapes.split import SPLITS, distinct_scenes, heldout_reasons, is_held_out, scene_at


def test_share_of_held_out_scenes() -> None:
    rng = np.random.default_rng(0)
    share = np.mean([is_held_out(random_scene(rng)) for _ in range(5000)])
    assert 0.15 < share < 0.27


def test_every_value_occurs_in_training() -> None:
    seen: Counter[str] = Counter()
    for scene in distinct_scenes("train", 3000):
        seen[scene.background] += 1
        seen[scene.relation or ""] += 1
        for o in scene.objects:
            seen.update((o.color, o.shape, o.size, o.fill))
    for value in (*COLORS, *SHAPES, *SIZES, *FILLS, *RELATIONS, *BACKGROUNDS):
        assert seen[value] > 200, value


@pytest.mark.parametrize(
    ("text", "reasons"),
    [
        ("a small solid purple star on a white background", ("purple star",)),
        ("a small striped blue diamond on a white background", ("striped diamond",)),
        (
            "a small solid red circle left of a large solid blue triangle on a gray background",
            ("circle left of triangle",),
        ),
        (
            "a small solid red triangle right of a large solid blue circle on a gray background",
            ("triangle right of circle",),
        ),
        (
            "a small solid red star above a small solid red cross and a large solid green triangle "
            "on a gray background",
            ("green triangle",),
        ),
        ("a small solid red circle above a large solid blue triangle on a gray background", ()),
        ("a small hollow blue diamond on a white background", ()),
    ],
)
def test_reasons(text: str, reasons: tuple[str, ...]) -> None:
    assert heldout_reasons(parse(text)) == reasons
    assert is_held_out(parse(text)) == bool(reasons)


@pytest.mark.parametrize("split", SPLITS)
def test_scene_at(split: str) -> None:
    scenes = [scene_at(split, i) for i in range(100)]
    assert scenes == [scene_at(split, i) for i in range(100)]
    assert all(is_held_out(scene) == (split == "heldout") for scene in scenes)
    assert len({caption(scene) for scene in scenes}) > 90
    assert scenes != [scene_at(split, i, seed=1) for i in range(100)]


@pytest.mark.parametrize("split", SPLITS)
def test_distinct_scenes(split: str) -> None:
    scenes = distinct_scenes(split, 3000, seed=5)
    assert len({caption(scene) for scene in scenes}) == len(scenes) == 3000
    assert all(is_held_out(scene) == (split == "heldout") for scene in scenes)
    assert scenes == distinct_scenes(split, 3000, seed=5)
    assert scenes[:50] != distinct_scenes(split, 3000, seed=6)[:50]
    first, second = (np.mean([len(s.objects) for s in half]) for half in (scenes[:1500], scenes[1500:]))
    assert abs(first - second) < 0.1


def test_errors() -> None:
    with pytest.raises(ValueError, match="split is 'test', expected one of train, heldout"):
        scene_at("test", 0)
    with pytest.raises(ValueError, match="index is -1"):
        scene_at("train", -1)
    with pytest.raises(ValueError, match="split is 'test'"):
        distinct_scenes("test", 1)
    with pytest.raises(ValueError, match="count is -1"):
        distinct_scenes("train", -1)
    assert distinct_scenes("train", 0) == []
