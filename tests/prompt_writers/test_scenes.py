"""Skills of the shapes world: what is drawn exercises them, and what does not is recognised."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from prdp.prompt_writers.scenes import Scenes
from prdp.worlds.shapes.grammar import caption, parse
from prdp.worlds.shapes.split import is_held_out

ONE = "a large solid yellow diamond on a gray background"
TWO = "a large solid red circle left of a large solid blue square on a white background"
HELD_OUT = "a large solid purple star on a gray background"


@pytest.mark.parametrize(
    "scenes",
    [
        Scenes(),
        Scenes(differ=("color", "fill"), only={"size": ("large",), "background": ("white", "black")}),
        Scenes(objects=(2,), differ=("size",), only={"relation": ("above",)}),
        Scenes(objects=(1, 3), differ=("shape",), split="heldout"),
    ],
)
def test_what_is_drawn_is_of_the_skill(scenes: Scenes) -> None:
    rng = np.random.default_rng(0)
    drawn = [scenes.draw(rng) for _ in range(120)]
    counts = Counter(len(scene.objects) for scene in drawn)
    assert set(counts) == set(scenes.objects)
    assert min(counts.values()) > 0.4 * max(counts.values())
    for scene in drawn:
        assert scenes.problem(caption(scene)) is None
        assert is_held_out(scene) == (scenes.split == "heldout")
        for name in scenes.differ:
            assert len({getattr(one, name) for one in scene.objects}) == len(scene.objects)
    assert len({caption(scene) for scene in drawn}) > 80


@pytest.mark.parametrize(
    ("changes", "text", "problem"),
    [
        ({}, "a red circle", "word 'red' is not understood at position 2"),
        ({"objects": [2, 3]}, ONE, "1 objects, not 2 or 3"),
        ({"differ": ["size"], "objects": [2]}, TWO, "two objects of one size"),
        ({"only": {"color": ["red"]}}, TWO, "color blue"),
        ({"only": {"relation": ["above"]}}, TWO, "relation left of"),
        ({"only": {"relation": ["above"]}}, ONE, None),
        ({"only": {"background": ["white"]}}, ONE, "background gray"),
        ({}, HELD_OUT, "held out: purple star"),
        ({"split": "heldout"}, HELD_OUT, None),
        ({"split": "heldout"}, ONE, "not held out"),
    ],
)
def test_why_a_text_is_no_prompt_of_the_skill(changes: dict[str, Any], text: str, problem: str | None) -> None:
    found = Scenes(**changes).problem(text)
    assert found is None if problem is None else problem in str(found)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objects": []}, r"objects=\[\]: must be whole numbers from 1 to 3"),
        ({"objects": [4]}, r"objects=\[4\]"),
        ({"differ": ["colour"]}, r"differ=colour: must be of color, .*Did you mean 'color'"),
        ({"differ": ["size"], "objects": [3]}, "differ=size: 3 objects need as many of its values"),
        ({"only": {"hue": ["red"]}}, "only.hue: must be of color, shape"),
        ({"only": {"color": ["rot"]}}, r"only.color=\['rot'\]: must be of red, orange"),
        ({"split": "test"}, "split=test: must be train or heldout"),
    ],
)
def test_scenes_that_there_are_not(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scenes(**settings)


def test_scenes_that_there_are_hardly_any_of() -> None:
    with pytest.raises(ValueError, match="none of 1000 that were drawn is of split=heldout"):
        Scenes(objects=(1,), only={"color": ("red",), "fill": ("solid",)}, split="heldout").draw(
            np.random.default_rng(0)
        )


def test_metadata_holds_the_scene() -> None:
    found = Scenes().metadata(TWO.upper())
    scene = parse(TWO)
    assert (found["objects"], found["split"]) == (2, "train")
    assert found["scene"]["relation"] == "left of"
    assert [one["color"] for one in found["scene"]["objects"]] == [one.color for one in scene.objects]
