from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prdp.worlds.shapes.corrupt import ATTRIBUTES, corrupt
from prdp.worlds.shapes.grammar import VOCABULARY, caption, count_prompts, parse
from prdp.worlds.shapes.scene import BACKGROUNDS, COLORS, FILLS, RELATIONS, SHAPES, SIZES, Obj, Scene, random_scene

OBJECTS = st.builds(
    Obj, st.sampled_from(list(COLORS)), st.sampled_from(SHAPES), st.sampled_from(SIZES), st.sampled_from(FILLS)
)


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    objects = draw(st.lists(OBJECTS, min_size=1, max_size=3, unique_by=lambda o: (o.color, o.shape)))
    relation = draw(st.sampled_from(list(RELATIONS))) if len(objects) > 1 else None
    return Scene(tuple(objects), relation, draw(st.sampled_from(list(BACKGROUNDS))))


@given(scenes())
def test_parse_inverts_caption(scene: Scene) -> None:
    text = caption(scene)
    assert parse(text) == scene
    assert set(text.split()) <= set(VOCABULARY)
    assert len(text.split()) <= 22


@given(scenes(), st.randoms(use_true_random=False))
def test_case_and_space_do_not_matter(scene: Scene, random: object) -> None:
    words = [word.upper() if random.random() < 0.5 else word for word in caption(scene).split()]
    assert parse("  " + " \t\n".join(words) + " ") == scene


@settings(max_examples=200)
@given(scenes(), st.data())
def test_wrong_word_is_named_with_its_position(scene: Scene, data: st.DataObject) -> None:
    words = caption(scene).split()
    at = data.draw(st.integers(0, len(words) - 1))
    words[at] = "zebra"
    with pytest.raises(ValueError, match=f"'zebra' is not understood at position {at + 1} "):
        parse(" ".join(words))


@given(st.lists(st.sampled_from(VOCABULARY), max_size=24).map(" ".join))
def test_any_words_parse_to_a_scene_or_fail_clearly(text: str) -> None:
    try:
        assert caption(parse(text)) == text
    except ValueError as error:
        assert str(error)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the prompt ends at position 1"),
        ("a small solid red circle", "the prompt ends at position 6"),
        ("a small solid red circle on a white background now", "'now' is not understood at position 10"),
        ("a small solid red circle left a large solid red star on a gray background", "'a' is not .* position 7"),
        ("a small red circle on a white background", "'red' is not understood at position 3"),
        (
            "a small solid red circle above a large hollow red circle on a gray background",
            "two objects are both a red circle",
        ),
    ],
)
def test_errors(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_vocabulary_is_complete_and_without_repeats() -> None:
    assert len(set(VOCABULARY)) == len(VOCABULARY)
    rng = np.random.default_rng(0)
    seen = {word for _ in range(2000) for word in caption(random_scene(rng)).split()}
    assert seen == set(VOCABULARY)


def test_count_prompts() -> None:
    pairs, variants = 48, 6
    one = pairs * variants
    two = one * (pairs - 1) * variants * 4
    assert count_prompts() == 4 * (one + two + two * (pairs - 2) * variants)


def test_bad_scenes() -> None:
    red, blue = Obj("red", "circle", "small", "solid"), Obj("blue", "circle", "small", "solid")
    for make, message in [
        (lambda: Obj("crimson", "circle", "small", "solid"), "color is 'crimson', expected one of red"),
        (lambda: Obj("red", "circle", "tiny", "solid"), "size is 'tiny'"),
        (lambda: Scene((), None, "white"), "0 objects"),
        (lambda: Scene((red,), "above", "white"), "expected None"),
        (lambda: Scene((red, blue), None, "white"), "relation is None"),
        (lambda: Scene((red, red), "above", "white"), "both a red circle"),
        (lambda: Scene((red,), None, "navy"), "background is 'navy'"),
        (lambda: random_scene(np.random.default_rng(0), 4), "num_objects is 4"),
        (lambda: corrupt(Scene((red,), None, "white"), "relation", np.random.default_rng(0)), "no relation"),
        (lambda: corrupt(Scene((red,), None, "white"), "mood", np.random.default_rng(0)), "attribute is 'mood'"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            make()


def test_object_counts() -> None:
    rng = np.random.default_rng(3)
    counts = np.bincount([len(random_scene(rng).objects) for _ in range(5000)], minlength=4) / 5000
    assert counts[1:] == pytest.approx([0.3, 0.5, 0.2], abs=0.03)
    assert all(len(random_scene(rng, n).objects) == n for n in (1, 2, 3))


@given(scenes(), st.sampled_from(ATTRIBUTES), st.integers(0, 1000))
def test_corruption_changes_one_attribute(scene: Scene, attribute: str, seed: int) -> None:
    if attribute == "relation" and scene.relation is None:
        return
    changed = corrupt(scene, attribute, np.random.default_rng(seed))
    assert changed != scene
    if attribute == "count":
        assert abs(len(changed.objects) - len(scene.objects)) == 1
        return
    different = {name for name in ("relation", "background") if getattr(changed, name) != getattr(scene, name)}
    for old, new in zip(scene.objects, changed.objects, strict=True):
        fields = [name for name in ("color", "shape", "size", "fill") if getattr(old, name) != getattr(new, name)]
        different |= set(fields)
    assert different == {attribute}
